"""An attack whose strength is searched against the rule that it faces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from consensus_optax import _check
from consensus_optax._rows import verbs
from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._running.reducer import Aggregator
from consensus_optax._typing import Array, Number, Tree
from consensus_optax.attacks._join import join

Attack = Callable[..., Tree]

GRID = (0.0, *np.geomspace(0.05, 50, 16).round(4).tolist())
# fewer, for training, where each round searches anew
SHORT_GRID = (0.0, *np.geomspace(0.1, 30, 8).round(4).tolist())
_GOLDEN = (3 - 5**0.5) / 2


class Strongest(NamedTuple):
    """What :func:`search_strength` has found.

    Attributes:
      strength: () the best of all that were tried.
      distance: () how far it moves the update.
    """

    strength: Number
    distance: Number


def strongest(
    attack: Attack,
    rule: Aggregator,
    strength: str,
    *,
    grid: Sequence[float] = GRID,
    num_refinements: int = 20,
    reference: str = "mean",
) -> Attack:
    r"""The attack at the strength that moves the rule's update farthest.

    .. math:: \max_\tau \big\| \mathrm{rule}(g_1 \dots g_h,
        \mathrm{attack}_\tau(g)) - \bar g \big\|

    ``strongest(attacks.a_little_is_enough, rule, "num_deviations")`` is optimal ALIE,
    ``strongest(attacks.inner_product_manipulation, rule, "epsilon")`` optimal IPM.

    Guarantees: the rule's own update is measured, whatever the rule; no strength of
    ``grid`` moves it farther. Where the distance has one peak between the neighbours of
    the best of these, each refinement leaves 0.62 of the way between them at the most.
    Edge cases: all strengths alike: the first of ``grid``. A strength whose update is
    not a number is not taken.

    Differences from byzfl's ``Optimal_ALittleIsEnough`` and
    ``Optimal_InnerProductManipulation``, which measure the same distance:

    1. Theirs goes in steps of 10, 20, ... as long as the distance grows, then takes
       steps of 0.8 of the last; a peak below the first step is met only if it is on the
       way back. Ours looks at all of ``grid`` first, and on the stack of our tests goes
       at least as far.
    2. Their ALIE adds deviations to the mean, with divisor h - 1; ours takes them off,
       as published, with divisor h. Both is mirrored by a grid of negative numbers.

    Args:
      attack: ``attack(honest, num_byzantine, key, **{strength: number})``.
      rule: a reducer, or another aggregator, of all rows.
      strength: the name of the attack's argument.
      grid: strengths to try, increasing.
      num_refinements: how many more are tried beside the best of them.
      reference: ``"mean"``, the (weighted) mean of the honest rows; or ``"rule"``, what
        the rule makes of them without attackers, for rules with a scale of their own.

    Returns:
      ``attack(honest, num_byzantine, key, *, weights=None, state=None)``, the rows of
      the attackers. ``weights`` (h + f,) are those of all rows, the attackers' last;
      ``state`` is the rule's, for those that remember; by default it is fresh.

    Raises:
      ValueError: an argument is none of these; when traced, whatever the rule raises.

    Cost: the rule, ``len(grid) + num_refinements`` times, one after the other in one
    loop: memory is that of once.

    References: what is maximized: Allouah et al., `Fixing by Mixing
    <https://arxiv.org/abs/2302.01772>`_, 2023; Shejwalkar and Houmansadr, `Manipulating
    the Byzantine <https://www.ndss-symposium.org/ndss-paper/manipulating-the-byzantine-
    optimizing-model-poisoning-attacks-and-defenses-for-federated-learning/>`_, 2021.

    Examples:
      >>> import jax.numpy as jnp, consensus_optax as co
      >>> from consensus_optax import attacks
      >>> against = attacks.strongest(
      ...     attacks.inner_product_manipulation, co.median(), "epsilon")
      >>> honest = jnp.array([[1.], [2.], [3.], [6.]])
      >>> bad = against(honest, 1)  # any row below 2 makes 2 of the median
      >>> float(bad[0, 0]) <= 2
      True
    """
    _check_search(rule, strength, grid, num_refinements, reference)

    def searched(
        honest: Tree,
        num_byzantine: int,
        key: Array | None = None,
        *,
        weights: Array | None = None,
        state: Any = None,
    ) -> Tree:
        found = search_strength(
            attack,
            rule,
            strength,
            honest,
            num_byzantine,
            key,
            grid=grid,
            num_refinements=num_refinements,
            reference=reference,
            weights=weights,
            state=state,
        )
        return attack(honest, num_byzantine, key, **{strength: found.strength})

    return searched


def search_strength(
    attack: Attack,
    rule: Aggregator,
    strength: str,
    honest: Tree,
    num_byzantine: int,
    key: Array | None = None,
    *,
    grid: Sequence[float] = GRID,
    num_refinements: int = 20,
    reference: str = "mean",
    weights: Array | None = None,
    state: Any = None,
) -> Strongest:
    r"""The strength that :func:`strongest` takes, and what it does.

    Args:
      attack: as for :func:`strongest`; so are the others.
      rule: a reducer.
      strength: the name of the attack's argument.
      honest: rows, (h, \*shape) leaves.
      num_byzantine: f, how many attackers there are.
      key: what the attack is given.
      grid: strengths to try, increasing.
      num_refinements: how many more.
      reference: ``"mean"`` or ``"rule"``.
      weights: (h + f,) of all rows, the attackers' last.
      state: of the rule.

    Returns:
      The strength and the distance.

    Raises:
      ValueError: as for :func:`strongest`.

    Examples:
      >>> import jax.numpy as jnp, consensus_optax as co
      >>> from consensus_optax import attacks
      >>> flip, honest = attacks.sign_flip, jnp.array([[2.], [2.], [2.]])
      >>> found = search_strength(
      ...     flip, co.mean(), "scale", honest, 1, grid=(0., 1., 2.))
      >>> float(found.strength), float(found.distance)  # (2 + 2 + 2 - 4) / 4 is 1.5 off
      (2.0, 1.5)
    """
    _check_search(rule, strength, grid, num_refinements, reference)
    _check.count("num_byzantine", num_byzantine)
    num_honest = jax.tree.leaves(honest)[0].shape[0]
    count = num_honest + num_byzantine
    there = jnp.ones(count, jnp.float32) if weights is None else jnp.asarray(weights)
    if there.shape != (count,):
        raise ValueError(
            f"`weights` must be ({count},), of {num_honest} honest rows and "
            f"{num_byzantine} attackers; got {there.shape}"
        )
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), honest)
    state = rule.init(params) if state is None else state
    at = lambda number: attack(honest, num_byzantine, key, **{strength: number})

    def updated(bad: Tree, weights: Array) -> Tree:
        rows = join(honest, bad)
        return rule.update(rows, state, params, weights=weights)[0]

    dtype = verbs.decision_dtype(honest)
    points, there = jnp.asarray(grid, dtype), there.astype(dtype)
    if reference == "rule":
        alone = jnp.where(jnp.arange(count) < num_honest, there, 0)
        goal = updated(at(points[0]), alone)
    else:
        goal = _mean(honest, there[:num_honest], dtype)

    def distance(number: Number) -> Number:
        update = updated(at(number), there)
        gap = lambda one, two: jnp.sum((one.astype(dtype) - two.astype(dtype)) ** 2)
        return jnp.sqrt(sum(jax.tree.leaves(jax.tree.map(gap, update, goal))))

    return _maximized(distance, points, num_refinements)


def _maximized(far: Callable[[Number], Number], grid: Array, more: int) -> Strongest:
    """The best of a grid, then golden sections between its neighbours.

    One loop, so that the rule is compiled once.
    """
    last = grid.shape[0] - 1

    def turn(carry: Any, number: Array) -> tuple[Any, None]:
        best, value, low, high = carry
        below = best - low > high - best
        inside = best + _GOLDEN * jnp.where(below, low - best, high - best)
        on_grid = number <= last
        tried = jnp.where(on_grid, grid[jnp.minimum(number, last)], inside)
        found = far(tried)
        better = found > value  # False for nan
        # of a bracket the end on the worse point's side moves to it
        worse = jnp.where(better, best, tried)
        upper = worse > jnp.where(better, tried, best)
        low_inside = jnp.where(upper, low, worse)
        high_inside = jnp.where(upper, worse, high)
        before, after = jnp.maximum(number - 1, 0), jnp.minimum(number + 1, last)
        low = jnp.where(on_grid, jnp.where(better, grid[before], low), low_inside)
        high = jnp.where(on_grid, jnp.where(better, grid[after], high), high_inside)
        best, value = jnp.where(better, tried, best), jnp.where(better, found, value)
        return (best, value, low, high), None

    shape = jax.eval_shape(far, grid[0])
    start = grid[0], jnp.full((), -jnp.inf, shape.dtype), grid[0], grid[0]
    numbers = jnp.arange(last + 1 + more)
    (best, value, *_), _ = lax.scan(turn, start, numbers)
    return Strongest(best, value)


def _mean(rows: Tree, weights: Array, dtype: Any) -> Tree:
    """The weighted mean of rows that are there."""
    shares = weights / positive_or_one(weights.sum())

    def of(leaf: Array) -> Array:
        own = shares.reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.where(own > 0, own * leaf.astype(dtype), 0).sum(0)

    return jax.tree.map(of, rows)


def _check_search(
    rule: Any, strength: Any, grid: Any, num_refinements: Any, reference: Any
) -> None:
    """Raises unless these are what a search needs."""
    if not hasattr(rule, "init") or not hasattr(rule, "update"):
        _check.fail("rule", "a reducer", rule)
    if not isinstance(strength, str):
        _check.fail("strength", "the name of an argument of the attack", strength)
    numbers = np.asarray(grid, float)
    if numbers.ndim != 1 or not numbers.size or np.any(np.diff(numbers) <= 0):
        _check.fail("grid", "increasing numbers, one at least", grid)
    _check.count("num_refinements", num_refinements, minimum=0)
    _check.one_of("reference", reference, ("mean", "rule"))
