"""Leaves that are reduced inside of the backward pass, as soon as they are there.

Rows of a layer inside of ``lax.scan`` need not leave its body if somebody says what to
make of them there: a few numbers for each row, which add up over layers, and arrays
like the layer's parameter, which the scan stacks as it would have stacked gradients.
A leaf is claimed by whoever wants it reduced, and the claim is handed back along the
way by which its gradient comes: moves of axes, calls, scans that stack it. Nothing else
may read the gradient on this way. What is added up before it is whole, as the kernels
of a recurrent cell are, is claimed no further than to there.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core

from consensus_optax._rows.outer_product import is_outer_product

_SAME = ("pvary", "sharding_constraint", "copy", "convert_element_type")


class Claim(NamedTuple):
    """A gradient leaf, or one layer's part of it, as a variable has it.

    Attributes:
      leaf: which leaf.
      dtype: the leaf's, whatever the variable's is.
      axis: where the variable has its example axis.
      like: tree of arrays laid out as the variable is without that axis.
      order: which axes of the leaf's parameter those of ``like`` are; () if unknown.
    """

    leaf: int
    dtype: Any
    axis: int
    like: Any = None
    order: tuple[int, ...] = ()

    def of_turn(self, like: Any) -> Claim:
        """The claim of one turn of a scan that stacks the variable in front."""
        return self._replace(axis=self.axis - 1, like=like, order=self.order[1:])

    @property
    def back(self) -> list[int]:
        """What transposes arrays like ``like`` to the order of the parameter's axes."""
        return _sorting(self.order)

    def in_order(self) -> Claim:
        """The claim on the variable with its axes in that order."""
        like = jax.tree.map(lambda x: x.transpose(self.back), self.like)
        return self._replace(like=like, order=tuple(sorted(self.order)))

    def before(self, eqn: Any) -> Claim | None:
        """The claim on what an operation moved; None if it does more than that."""
        name, axis = eqn.primitive.name, self.axis
        if name in _SAME:
            return self
        if name == "transpose":
            order = eqn.params["permutation"]
            place = order[axis]
            inverse = _without(place, order)
            back = _sorting(inverse)
            like = jax.tree.map(lambda x: x.transpose(back), self.like)
            moved = tuple(self.order[i] for i in back) if self.order else ()
            return self._replace(axis=place, like=like, order=moved)
        if _reshapes_rows(eqn, axis):
            shape = eqn.invars[0].aval.shape[1:]
            like = jax.tree.map(lambda x: x.reshape(shape), self.like)
            return self._replace(like=like, order=())
        return None


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["sums", "likes"],
    meta_fields=["axis", "rows"],
)
@dataclasses.dataclass(frozen=True)
class Reduced:
    """What was made of the rows of a leaf, or of one layer's part of it.

    Attributes:
      sums: tree of arrays that add up over layers.
      likes: tree of arrays laid out as the variable is without its example axis.
      axis: where that would be.
      rows: where ``likes`` have an axis of rows all the same, or None.
    """

    sums: Any
    likes: Any
    axis: int = 0
    rows: int | None = None

    def stacked(self) -> Reduced:
        """The same of all turns of a scan, from what it stacked."""
        sums = jax.tree.map(lambda x: x.sum(0), self.sums)
        rows = None if self.rows is None else self.rows + 1
        return Reduced(sums, self.likes, self.axis + 1, rows)

    def out_of_order(self, claim: Claim) -> Reduced:
        """The same as the claim has it, from what was made ``in_order``."""
        order = _sorting(claim.back)
        likes = self._of_likes(lambda x: x.transpose(order))
        return dataclasses.replace(self, likes=likes)

    def moved(self, eqn: Any) -> Reduced:
        """The same after an operation that a claim was handed back through."""
        if eqn.primitive.name == "transpose":
            order = eqn.params["permutation"]
            inner = _without(self.axis, order)
            likes = self._of_likes(lambda x: x.transpose(inner))
            axis = order.index(self.axis)
            return dataclasses.replace(self, likes=likes, axis=axis)
        if eqn.primitive.name == "reshape":
            shape = eqn.outvars[0].aval.shape[1:]
            likes = self._of_likes(lambda x: x.reshape(shape))
            return dataclasses.replace(self, likes=likes)
        return self

    def _of_likes(self, function: Callable[[Any], Any]) -> Any:
        """A function of every array in ``likes``, or of each row in it."""
        if self.rows is not None:
            function = jax.vmap(function, self.rows, self.rows)
        return jax.tree.map(function, self.likes)


Reduce = Callable[[Claim, Any], Reduced]


class Claims(NamedTuple):
    """Whose variables are claimed, and what is made of rows that are.

    Attributes:
      of: claims by variable.
      reduce: (claim, rows) to what is made of them.
      waits: whether all else waits until that is there: outside of scans.
      values: what else is waited for, as soon as it can be there. A loss that is only
        returned would be taken at last, of logits that are held until then.
    """

    of: dict[Any, Claim]
    reduce: Reduce
    waits: bool = True
    values: Sequence[Any] = ()

    def handed_back(self, jaxpr: Any) -> Claims:
        """Claims on these variables, and on all that are nothing but moved to them."""
        producers = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
        reads = [var for eqn in jaxpr.eqns for var in eqn.invars] + [*jaxpr.outvars]
        uses = collections.Counter(x for x in reads if not isinstance(x, core.Literal))
        found: dict[Any, Claim] = {}
        for var, given in self.of.items():
            claim: Claim | None = given
            while claim is not None and uses[var] == 1:
                found[var] = claim
                eqn = producers.get(var)
                claim = None if eqn is None else claim.before(eqn)
                if eqn is not None and claim is not None:
                    (var, *_) = eqn.invars
        return self._replace(of=found)

    def within(self, outer: Sequence[Any], inner: Sequence[Any]) -> Claims:
        """Claims on what a call gives, as claims on what its inside gives."""
        pairs = zip(outer, inner, strict=True)
        given = {var: own for var, own in pairs if var in self.of}
        of = {own: self.of[var] for var, own in given.items() if once(own, inner)}
        return self._replace(of=of)

    def settled(self, var: Any, value: Any, last: bool = False) -> Any:
        """A variable's value, reduced if it is claimed and a product.

        Where nothing comes after it, as at the end of a scan's body, an array is, too.
        """
        claim = None if isinstance(var, core.Literal) else self.of.get(var)
        if claim is None or claim.axis or isinstance(value, Reduced):
            return value
        large = last and value.size >= SMALL * value.shape[0]
        if large or is_outer_product(value):
            return self.reduce(claim, value)
        return value


# Coordinates below which rows are held: they make more loops than they take memory.
SMALL = 2**13
NOBODY = Claims({}, lambda claim, rows: rows)


def once(var: Any, those: Sequence[Any]) -> bool:
    """Whether this is a variable, and given out no more than once."""
    return not isinstance(var, core.Literal) and sum(x is var for x in those) == 1


def _sorting(order: Sequence[int]) -> list[int]:
    """The permutation that sorts, of which the inverse is that of itself."""
    return sorted(range(len(order)), key=order.__getitem__)


def _without(axis: int, order: Sequence[int]) -> tuple[int, ...]:
    """A permutation of axes as that of the others."""
    return tuple(each - (each > axis) for each in order if each != axis)


def _reshapes_rows(eqn: Any, axis: int) -> bool:
    """Whether an operation is a reshape that leaves a leading example axis alone."""
    if eqn.primitive.name != "reshape" or axis or eqn.params["dimensions"] is not None:
        return False
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    return bool(before and after) and before[0] == after[0]
