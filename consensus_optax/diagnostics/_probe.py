"""A look at the rows on their way to the reducer."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rows.trees import no_params
from consensus_optax._rules.kinds import Known, Probing, Reads
from consensus_optax._running.named import named
from consensus_optax._running.row_transform import RowTransform, row_transform
from consensus_optax._typing import Array, Threshold, Tree
from consensus_optax.diagnostics._agreement import (
    Agreement,
    Labels,
    agreement,
    floating,
    labelled,
    sum_of,
)
from consensus_optax.diagnostics._cosines import cosine_quantiles
from consensus_optax.diagnostics._noise_scale import ratio


class ProbeState(NamedTuple):
    """State of :func:`probe`: moving averages over the steps that had two rows or more.

    Fields of cosines are None where norms alone are read; those of groups are dicts,
    from labels to what the fields above are for all leaves.

    Attributes:
      mass: () float32, total weight of the steps in the averages, 1 in the long run.
      coherence: () float32, see :func:`coherence`.
      conflicting_share: () float32, see :func:`conflicting_share`.
      gradient_squared: () float32, see :class:`NoiseScale`.
      noise_trace: () float32, likewise.
      cosine_quantiles: (5,) float32: least, quartiles and largest cosine of pairs.
      leaf_coherence: a tree like the parameters, the coherence of each leaf; 0 of those
        not looked at.
      group_coherence: dict of () float32; likewise the others.
      group_conflicting_share: the share of conflicting pairs in each group.
      group_gradient_squared: the squared norm of each group's true gradient.
      group_noise_trace: the trace of each group's covariance.
      group_noise_scale: quotients of the two averages before.
      noise_scale: () float32, quotient of the two averages above.
    """

    mass: Array
    coherence: Array
    conflicting_share: Array | None
    gradient_squared: Array
    noise_trace: Array
    cosine_quantiles: Array | None
    leaf_coherence: Tree
    group_coherence: dict[str, Array]
    group_conflicting_share: dict[str, Array] | None
    group_gradient_squared: dict[str, Array]
    group_noise_trace: dict[str, Array]
    group_noise_scale: dict[str, Array]
    noise_scale: Array


@named
def probe(
    decay: Threshold = 0.9,
    group_size: int = 1,
    *,
    reads: str = "gramian",
    groups: Labels | None = None,
    mask: Labels | None = None,
) -> RowTransform:
    """Passes rows through and keeps numbers of how they agree in its state.

    In :func:`chain` it looks at rows in microbatches, inside of the backward pass and
    on a mesh as well: ``co.chain(co.probe(), co.cosine_filter())``, where both read one
    Gramian.

    Guarantees: the rows are not touched. All fields are corrected for the short past,
    so the first step shows what it saw; numerator and denominator of the noise scale
    are averaged by themselves.
    Edge cases: a row with a non-finite entry, or whose squared norm is not finite, is
    absent. A step with fewer than two rows leaves all averages as they are.

    ``weights``: 0 = absent; see the functions that the fields are named after.

    Args:
      decay: of the moving averages, in [0, 1); 0 keeps the last step alone. A number,
        array or schedule of the step.
      group_size: examples in one row, for the noise scale.
      reads: ``"gramian"``; or ``"norms"``, of which coherence and noise scale can be
        told, not how pairs of rows stand to each other.
      groups: labels of leaves, for numbers of each group: a tree like the parameters,
        or a prefix of one, or a function of them, as for ``optax.partition``;
        ``co.diagnostics.leaf_names`` for every leaf by itself.
      mask: which leaves are looked at: True or False instead of labels, as for
        ``optax.masked``. Others cost nothing: layers of normalization alone tell the
        noise scale of a transformer, up to a factor (Gray et al.).

    Returns:
      An example transformation, ahead of a reducer in ``optax.chain`` or in
      :func:`chain`. Read a field by ``optax.tree.get(state, "noise_scale")``.

    Raises:
      ValueError: a static argument is out of range; in ``init`` labels are of another
        structure than the parameters, or no leaf is looked at.

    Cost: one Gramian, or norms and the mean, which a compiler may share with those of
    the reducer; ahead of a weighting in :func:`chain` it is always shared.

    References: Gray et al., `Normalization Layer Per-Example Gradients are Sufficient
    to Predict Gradient Noise Scale in Transformers <https://arxiv.org/abs/2411.00999>`_,
    2024.

    Examples:
      >>> import jax.numpy as jnp, optax, consensus_optax as co
      >>> rule, params = co.chain(co.probe(), co.mean()), jnp.zeros(2)
      >>> rows = jnp.array([[1., 0.], [0., 1.]])
      >>> _, state = rule.update(rows, rule.init(params), params)
      >>> optax.tree.get(state, "conflicting_share").item()
      0.0
      >>> optax.tree.get(state, "coherence").item()
      1.0
    """
    _check.interval("decay", decay, 0, 1, open_high=True)
    _check.count("group_size", group_size)
    _check.one_of("reads", reads, (Reads.GRAMIAN, Reads.NORMS))
    pairs = reads == Reads.GRAMIAN

    def parts(like: Tree) -> tuple[list[int], dict[str, list[int]]]:
        """Which floating leaves are looked at, and those of every group."""
        looked = [True] * sum(floating(like))
        if mask is not None:
            looked = labelled("mask", mask, like)
            if not any(looked):
                raise ValueError("`mask` must have a leaf to look at; got none")
        chosen = [i for i, yes in enumerate(looked) if yes]
        labels: list[Any] = [] if groups is None else labelled("groups", groups, like)
        names = sorted({str(labels[i]) for i in chosen}) if labels else []
        return chosen, {
            name: [i for i in chosen if str(labels[i]) == name] for name in names
        }

    def init(params: Tree, dtype: Any) -> ProbeState:
        del dtype
        zero = lambda *shape: jnp.zeros(shape, jnp.float32)
        names = list(parts(params)[1] if jax.tree.leaves(params) else ())
        each = lambda: no_params(params, {name: zero() for name in names})
        return ProbeState(
            *(zero(), zero(), zero() if pairs else None, zero(), zero()),
            zero(5) if pairs else None,
            no_params(params, jax.tree.map(lambda _: zero(), params)),
            *(each(), each() if pairs else None, each(), each(), each()),
            zero(),
        )

    def observe(known: Known, state: ProbeState) -> ProbeState:
        chosen, members = parts(known.like)
        of = lambda leaves: agreement(known, leaves, group_size)
        quantiles = None
        if pairs:
            whole = sum_of(known.products, chosen)
            quantiles = cosine_quantiles(whole, weights=known.weights)
        by_leaf = _like(known.like, {i: of([i]).coherence for i in chosen})
        by_group = {name: of(leaves) for name, leaves in members.items()}
        seen = *of(chosen), quantiles, by_leaf, *_transposed(by_group, pairs)
        beta = _check.value_at(decay, known.step, jnp.float32)
        mass = beta * state.mass + (1 - beta)
        several = jnp.sum(known.weights > 0) > 1

        def average(old: Array, new: Array) -> Array:
            """Corrected for the short past: the divisor is the mass so far."""
            moved = old + (1 - beta) / mass * (new.astype(jnp.float32) - old)
            return jnp.where(several, moved, old)

        fields = jax.tree.map(average, list(state[1:-2]), list(seen))
        mass = jnp.where(several, mass, state.mass)
        new = ProbeState._make([mass, *fields, *state[-2:]])
        quotient = lambda trace, squared, old: jnp.where(
            several, ratio(trace, squared), old
        )
        scales = jax.tree.map(
            quotient,
            (new.noise_trace, new.group_noise_trace),
            (new.gradient_squared, new.group_gradient_squared),
            (state.noise_scale, state.group_noise_scale),
        )
        return new._replace(noise_scale=scales[0], group_noise_scale=scales[1])

    return row_transform(Probing(observe, init, lambda like: parts(like)[0], reads))


def _like(like: Tree, numbers: dict[int, Array]) -> Tree:
    """A tree of numbers, by place among the floating leaves; 0 elsewhere."""
    leaves, treedef = jax.tree.flatten(like)
    places = iter(range(len(leaves)))
    each = [next(places) if moves else -1 for moves in floating(like)]
    zero = jnp.zeros((), jnp.float32)
    return jax.tree.unflatten(treedef, [numbers.get(i, zero) for i in each])


def _transposed(by_group: dict[str, Agreement], pairs: bool) -> tuple[Any, ...]:
    """Of every number the dict of it by group."""
    fields = []
    for field in Agreement._fields:
        there = pairs or field != "conflicting_share"
        each = {name: getattr(own, field) for name, own in by_group.items()}
        fields.append(each if there else None)
    return tuple(fields)
