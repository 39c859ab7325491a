"""The sum of clipped rows, divided by a number that no row decides."""

from __future__ import annotations

from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Threshold
from consensus_optax.weightings._clipping import Clipping


@named
def clipped_sum(
    max_norm: Threshold,
    *,
    divisor: float = 1.0,
    clipping: str = "threshold",
    stability: Threshold = 0.01,
    per_leaf: bool = False,
) -> Reducer:
    r"""The sum of clipped rows over a fixed divisor: what one row can change is known.

    Also known as: per-example clipping and aggregation.

    .. math:: u = \frac1d \sum_i g_i \min(1, C / \|g_i\|)

    To add or take away one row moves u by at most C / d in Euclidean norm, whatever the
    row holds: that is its ``sensitivity``, and what noise is scaled to. :func:`mean` of
    :func:`clip_examples` has no such bound, since it divides by the number of rows
    that are there and finite. :func:`private_sum` is this with noise.

    ``clipping="automatic"`` (AUTO-S) weights every row by :math:`C / (\|g_i\| +
    \gamma)`, so that C is only a learning rate. ``per_leaf=True`` clips every leaf of L
    to :math:`C / \sqrt L` by itself; the sum of all has the same sensitivity.

    Guarantees: the sensitivity is C / d for adding or removing a row, and for replacing
    one by zeros; for replacing it by another, 2 C / d. It holds in floating point: what
    a row is divided by is never less than its norm, also where the terms of a factored
    row cancel; and C is lowered by what rounding may change in a sum of B rows that one
    more row joins, B counting those of weight 0 (in float32 by 2e-4 of it with 64 rows,
    1.3 % with 1024, 10 % with 4096; beyond 8192 it is an error). The rounding of a sum
    of rows that cancel in themselves counts as that of others. A row of weight 0
    changes nothing; how rows are computed or spread over devices changes rounding
    alone.
    Edge cases: a row with an inf or a nan counts as zero and is counted
    (``num_nonfinite``), and so does and is one whose squared norm overflows. C = 0:
    zero. No row: zero, not ready. Parameters, or a ``wire_dtype``, narrower than
    float32 get a rounded sum, which the bound does not cover: :func:`private_sum` adds
    noise before.

    ``weights``: a row is multiplied by its weight before it is clipped, so that no
    weight makes it longer than C; 0 and 1 say which rows are there.

    Args:
      max_norm: C >= 0: a number, array or schedule of the step.
      divisor: d, usually the expected number of rows; never the actual number, which
        depends on the data.
      clipping: ``"threshold"`` or ``"automatic"``.
      stability: :math:`\gamma > 0` of automatic clipping.
      per_leaf: whether every leaf is clipped by itself.

    Returns:
      A :class:`Reducer` whose ``sensitivity`` is C / d, a function of the step where C
      is. ``num_clipped`` in its state is not private.

    Raises:
      ValueError: an argument is out of range; when traced, rows are too many.

    Cost: the rows' norms and one combination, as of the plain gradient; in microbatches
    one pass over the rows.

    References: Abadi et al., `Deep Learning with Differential Privacy
    <https://arxiv.org/abs/1607.00133>`_, 2016; Bu et al., `Automatic Clipping
    <https://arxiv.org/abs/2206.07136>`_, 2022; of rounding, Casacuberta et al.,
    `Widespread Underestimation of Sensitivity in Differentially Private Libraries
    <https://arxiv.org/abs/2207.10635>`_, 2022.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = clipped_sum(1.0, divisor=2), jnp.zeros(2)
      >>> rows = jnp.array([[0., 4.], [0.5, 0.], [jnp.inf, 0.]])
      >>> update, state = rule.update(rows, rule.init(params), params)
      >>> [round(float(x), 4) for x in update], int(state.num_nonfinite)
      ([0.25, 0.5], 1)
      >>> rule.sensitivity
      0.5
    """
    how = Clipping(max_norm, divisor, clipping, stability, per_leaf).checked()
    made = reducer(how.weighting())
    made.sensitivity = how.sensitivity
    return made
