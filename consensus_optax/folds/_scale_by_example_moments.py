"""Adam whose second moment is that of every row, not that of their mean."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from consensus_optax import _check
from consensus_optax._rows.statistics import WEIGHTED_SQUARE, WEIGHTED_SUM
from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._rules.kinds import Fold, Remembered, Roster
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Array, Scalar, Threshold


@named
def scale_by_example_moments(
    b1: Threshold = 0.9,
    b2: Threshold = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    variance: Threshold = 1.0,
) -> Reducer:
    r"""Adam with second moments of examples: the mean over the root of mean squares.

    Also known as: micro-Adam, per-example second moments.

    .. math:: m \leftarrow \beta_1 m + (1 - \beta_1)\, \bar g, \qquad
        v \leftarrow \beta_2 v + (1 - \beta_2)\,
        \Big(\bar g^2 + \kappa \big(\textstyle\sum_i \omega_i g_i^2 - \bar g^2\big)
        \Big), \qquad
        u = \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t) + \epsilon_r}
        + \epsilon}

    with the shares :math:`\omega` of the weights. What is added to the square of the
    mean is the variance over the rows: where they scatter, steps are short, and not
    longer for a larger batch. With :math:`\kappa = 0` it is
    ``optax.scale_by_adam`` of the mean. Roulet and Agarwala study such denominators, in
    which the mean should prevail, so try small :math:`\kappa` as well.

    A reducer and an optimizer's scaling in one: it takes the place of both in
    ``optax.chain(co.scale_by_example_moments(), optax.scale(-1e-3))``.

    Guarantees: the order of the rows is irrelevant; of a single row, and of equal ones,
    it is Adam of that row, whatever :math:`\kappa`; larger :math:`\kappa` makes no
    entry of the first step larger.
    Edge cases: a step without a row has no update, and leaves moments and t as they
    are; t counts the others. Where a square, or a sum of squares, overflows, the
    coordinate keeps its moments and has no update in this step.

    ``weights``: rows are averaged by them; only their ratios matter.

    Args:
      b1: :math:`\beta_1` in [0, 1): a number, array or schedule.
      b2: :math:`\beta_2` in [0, 1): a number, array or schedule.
      eps: :math:`\epsilon \ge 0`, outside of the root.
      eps_root: :math:`\epsilon_r \ge 0`, inside of it.
      variance: :math:`\kappa` in [0, 1]: a number, array or schedule.

    Returns:
      A :class:`Reducer`. Its state holds ``mu`` and ``nu``, two arrays like the
      parameters, float32 at least, and ``count``, t.

    Raises:
      ValueError: a static argument is out of range.

    Cost: one pass over the rows, two arrays like the parameters carried, and two kept.
    On a mesh these lie as the parameters do, as those of ``optax.adam``; under
    :func:`sharded` they travel with the update, and are whole while a step is made.

    References: Roulet, Agarwala, `Per-example gradients: a new frontier for
    understanding and improving optimizers <https://arxiv.org/abs/2510.00236>`_, 2025;
    Kingma, Ba, `Adam <https://arxiv.org/abs/1412.6980>`_, 2014. The family in
    :math:`\kappa` between the two is ours.

    Examples:
      >>> import jax.numpy as jnp, optax, consensus_optax as co
      >>> optimizer = optax.chain(co.scale_by_example_moments(), optax.scale(-0.1))
      >>> rows, params = jnp.array([[1., 3.], [1., -1.]]), jnp.zeros(2)
      >>> update, _ = optimizer.update(rows, optimizer.init(params), params)
      >>> [round(float(x), 4) for x in update]  # 1 / 1 and 1 / sqrt(5)
      [-0.1, -0.0447]
    """
    _check.interval("b1", b1, 0, 1, open_high=True)
    _check.interval("b2", b2, 0, 1, open_high=True)
    _check.interval("eps", eps, 0)
    _check.interval("eps_root", eps_root, 0)
    _check.interval("variance", variance, 0, 1)

    def resolve(
        merged: list[list[Array]], roster: Roster, remembered: Remembered
    ) -> tuple[list[Array], dict[str, list[Array]]]:
        dtype = roster.weights.dtype
        at = lambda given: _check.value_at(given, roster.step, dtype)
        # of a number known when traced, as optax has it, to the last digit
        rest = lambda given: (
            at(1 - given) if isinstance(given, float) else 1 - at(given)
        )
        first, second, spread = at(b1), at(b2), at(variance)
        outside, inside = at(eps), at(eps_root)
        count = remembered.count + 1
        corrections = 1 - lax.pow(first, count), 1 - lax.pow(second, count)
        total = positive_or_one(roster.weights.sum())

        def of_leaf(
            mean: Array, squares: Array, old_mu: Array, old_nu: Array
        ) -> tuple[Array, Array, Array]:
            of_mean = mean * mean
            squares = jnp.where(spread > 0, spread * squares, 0)
            moment = squares + jnp.where(spread < 1, (1 - spread) * of_mean, 0)
            mu = rest(b1) * mean + first * old_mu
            nu = rest(b2) * moment + second * old_nu
            sound = jnp.isfinite(mu) & jnp.isfinite(nu)
            mu, nu = jnp.where(sound, mu, old_mu), jnp.where(sound, nu, old_nu)
            root = jnp.sqrt(nu / corrections[1] + inside) + outside
            update = mu / corrections[0] / positive_or_one(root)
            return jnp.where(sound, update, 0), mu, nu

        means, squares = ([leaf / total for leaf in each] for each in merged)
        kept = remembered.arrays["mu"], remembered.arrays["nu"]
        made = [of_leaf(*each) for each in zip(means, squares, *kept, strict=True)]
        update, mu, nu = ([leaf[i] for leaf in made] for i in range(3))
        return update, {"mu": mu, "nu": nu}

    statistics = WEIGHTED_SUM, WEIGHTED_SQUARE
    return reducer(Fold(statistics, resolve, remembers=("mu", "nu")))
