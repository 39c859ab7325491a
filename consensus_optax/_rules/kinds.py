"""Rules: the pure mathematics of reducers, three kinds and three ways to compose them.

A rule never sees how rows are obtained; an engine never sees which rule it runs. So m
rules and n engines are m + n pieces of code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from consensus_optax._rows.statistics import Statistic
from consensus_optax._rules.roster import WORDS, Reads, Roster
from consensus_optax._rules.steps import (
    Known,
    Mixing,
    Probing,
    Remembering,
    Scaling,
    Step,
)
from consensus_optax._typing import Array, Count, Tree


def _no_state(params: Tree, dtype: Any) -> tuple[()]:
    """State of a rule that keeps none."""
    del params, dtype
    return ()


class Remembered(NamedTuple):
    """What a fold keeps from step to step.

    Attributes:
      count: () int32, steps so far in which there was a row.
      arrays: by name one array for every floating leaf, like the parameters and zero
        at first; on a mesh the coordinates at hand.
    """

    count: Count
    arrays: dict[str, list[Array]]


class Fold(NamedTuple):
    r"""A rule made of statistics that merge in any order: one pass, O(P) memory.

    Attributes:
      statistics: what is observed of each row and how two observations merge.
      resolve: (merged, roster) to the update. ``merged`` has one list per statistic,
        with one array of parameter shape for every leaf, or a tuple of arrays if that
        is what is observed; so has the update, of arrays. On a mesh
        these are some coordinates of each leaf: what is not coordinate by coordinate
        asks ``roster.coordinates`` for sums.
      matters: optional ``(*first, roster)`` to a mask: of the statistics that have a
        short cut for products, in order, where the others can matter. They may be left
        out of a leaf in which they matter nowhere.
      remembers: names of arrays like the parameters that are kept from step to step.
        If there are any, ``resolve`` is (merged, roster, remembered) to (update, those
        arrays by name); a step without a row leaves them as they are.

    Examples:
      The largest magnitude that any row asks for, with the sign of the sum:

      >>> import jax, jax.numpy as jnp, consensus_optax as co
      >>> largest = co.Statistic(lambda g, w: jnp.abs(g), jnp.maximum)
      >>> total = co.Statistic(lambda g, w: w * g, jnp.add)
      >>> resolve = lambda merged, roster: jax.tree.map(
      ...     lambda size, sum: size * jnp.sign(sum), *merged)
      >>> rule = co.reducer(co.Fold((largest, total), resolve))
      >>> rows, params = jnp.array([[1., -2.], [3., 1.]]), jnp.zeros(2)
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [3.0, -2.0]
    """

    statistics: Sequence[Statistic]
    resolve: Callable[..., Any]
    matters: Callable[..., Array] | None = None
    remembers: tuple[str, ...] = ()

    @property
    def reads_signs(self) -> bool:
        """Whether signs of rows do in place of rows."""
        return all(statistic.of_signs for statistic in self.statistics)

    @property
    def num_arrays(self) -> int:
        """How many arrays like the parameters its statistics are."""
        number = jax.ShapeDtypeStruct((), jnp.float32)
        seen = [jax.eval_shape(s.observe, number, number) for s in self.statistics]
        return len(jax.tree.leaves(seen))


class Columns(NamedTuple):
    r"""A rule that looks at all rows of one coordinate: (B, ...) to (...).

    Attributes:
      reduce: (stack, weights) to the update of one leaf: (B, \*shape) and (B,) to
        shape. Rows of weight 0 hold zeros and must not count.

    Examples:
      >>> import jax.numpy as jnp, consensus_optax as co
      >>> largest = co.Columns(lambda stack, weights: stack.max(0))
      >>> rule, params = co.reducer(largest), jnp.zeros(2)
      >>> rows = jnp.array([[1., -2.], [3., 1.]])
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [3.0, 1.0]
    """

    reduce: Callable[[Array, Array], Array]


class Weighting(NamedTuple):
    r"""A rule that needs only inner products: Gramian G to weights w, update wᵀJ.

    Attributes:
      weigh: (products, roster, state) to (w, state): w is (B,), and may be negative;
        all zero means that nothing is agreed on. ``products`` is what ``reads`` says.
      init: (params, dtype) to the rule's own state, a NamedTuple of arrays.
      reads: ``"gramian"`` for (B, B) inner products; ``"centered"`` for those of the
        rows less their weighted mean, right even where rows are nearly equal;
        ``"affine"`` for those of the rows less some common point, for distances and
        whatever else shifting all rows leaves alone, right also where other rows are
        far away; ``"signs"`` for those of sign(J), the coordinates in
        which two rows agree less those in which they do not; ``"norms"`` for (B,)
        squared norms; ``"norm_bounds"`` for the same rounded up, so that no row is
        longer; ``"toward"`` for (2, B + 1): squared norms, and inner products
        with a target, both with the target's own at the end; it is the previous update
        if the rule remembers, else the ``target`` of ``update``; ``"nothing"`` for
        None. What is not asked for is not computed.
        Entries of absent rows are 0; a row whose squared norm overflows is absent.
      degree: the power of s by which all weights change where all rows are multiplied
        by s: 0 where the update scales with the rows, -1 where it does not change. Rows
        of any finite size then have products: where most norms overflow, or none is
        above 2e-10, those of rows times ``roster.scale``, a power of two, are given to
        ``weigh``, and its weights are put right; if the rule is ``apart``, row by row.
        None: there is no such power.
      remembers: whether the previous update (zero at first) joins as one row more, at
        the end: products are then (B + 1, B + 1), w is (B + 1,).
      per_leaf: False: one decision; True: one for every leaf from its own products, all
        fields of the state with a leading axis over leaves.
      apart: whether a row's weight is known once that row has been seen, so that rows
        which are computed a few at a time need not be computed again. ``"weight"``: its
        own products, its entry in ``roster.weights``, and ``roster.num_rows`` decide.
        ``"share"``: and its entry in ``roster.shares``, of which its weight is a
        multiple. None: other rows decide as well. ``reads`` says lengths, or nothing,
        then, and it remembers no update; ``weigh`` is also called with some of the
        rows, when of its state nothing is kept.

    Examples:
      >>> import jax.numpy as jnp, consensus_optax as co
      >>> def weigh(gramian, roster, state):
      ...     return jnp.where(gramian.diagonal() > 2, roster.shares, 0), state
      >>> rule, params = co.reducer(co.Weighting(weigh)), jnp.zeros(2)
      >>> rows = jnp.array([[1., 0.], [3., 1.]])
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [1.5, 0.5]
    """

    weigh: Callable[[Any, Roster, Any], tuple[Array, Any]]
    init: Callable[[Tree, Any], Any] = _no_state
    reads: str = "gramian"
    remembers: bool = False
    per_leaf: bool = False
    degree: int | None = None
    apart: str | None = None

    def present(self, roster: Roster) -> Array:
        """Whose weight counts, (B,), or (B + 1,) bool: the previous update's always."""
        extra = int(self.remembers)
        return jnp.pad(roster.present, (0, extra), constant_values=True)


class Among(NamedTuple):
    """A rule on the rows to which a weighting gives a positive weight.

    Attributes:
      selector: the weighting that selects; its weights serve for nothing else.
      rule: what the survivors are given to, with their own weights.
    """

    selector: Weighting
    rule: Any


class After(NamedTuple):
    """A rule on rows to which something has been done.

    Attributes:
      first: what is done to the rows first, a `Step`.
      rule: what they are given to then.
    """

    first: Step
    rule: Any


class Noised(NamedTuple):
    """A weighting to whose combination noise is added, also where no row is there.

    In the dtype of decisions, before the update is rounded to its parameters' dtypes,
    and once, however many devices there are.

    Attributes:
      rule: the weighting; it remembers no update.
      add: (update, roster, state before the step) to the update with noise. On a mesh
        these are some coordinates of each leaf: ``roster.coordinates.draw`` draws.
    """

    rule: Weighting
    add: Callable[[list[Array], Roster, Any], list[Array]]


Rule = Fold | Columns | Weighting | Among | After | Noised

__all__ = [
    "WORDS",
    "After",
    "Among",
    "Columns",
    "Fold",
    "Known",
    "Mixing",
    "Noised",
    "Probing",
    "Reads",
    "Remembered",
    "Remembering",
    "Roster",
    "Rule",
    "Scaling",
    "Step",
    "Weighting",
]
