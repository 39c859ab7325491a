"""Whether rows are held, or reduced inside of the backward pass: what either takes."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from consensus_optax._gradients.per_example import value_and_rows
from consensus_optax._rows.outer_product import is_outer_product
from consensus_optax._rules.kinds import (
    After,
    Among,
    Columns,
    Fold,
    Mixing,
    Noised,
    Probing,
    Reads,
    Rule,
    Scaling,
    Weighting,
)
from consensus_optax.engines.backward.passes import Batch

# A step with Adam has as much for parameters, gradients and two moments.
_TIMES_PARAMETERS = 4
# Bytes that nobody misses.
_FEW = 2**28


def is_held(rule: Rule, batch: Batch, on_mesh: bool) -> bool:
    """Whether the rows of all leaves are held while the rule reads them.

    Held they take the bytes of their factors, or of the stack (B, P) leaf by leaf where
    that is less, for as long as the rule looks at them. Reduced inside of the backward
    pass they take nothing, but every look is a pass: folds and columns have one look, a
    weighting two, so it takes up to twice the time of one that holds its rows. So rows
    are held up to four times the bytes of the parameters, or up to 256 MiB.
    """
    if not _reads_in_passes(rule, on_mesh):
        return True
    params = sum(_bytes(leaf) for leaf in jax.tree.leaves(batch.params))
    most = max(_TIMES_PARAMETERS * params, _FEW)
    if batch.arranged.num_rows * params <= most:
        return True
    return sum(_bytes(x) for leaf in _held(batch) for x in leaf) <= most


def is_dealt(rule: Rule, batch: Batch) -> bool:
    """Whether rows that are held on a mesh are dealt out in the pass that makes them.

    They take what they do in memory otherwise, and are not held twice while they are
    dealt out. For this most of their entries must be multiplied out anyway.
    """
    if not _reads_in_passes(rule, False):
        return False
    params = jax.tree.leaves(batch.params)
    sizes = [x.size for x in params if jnp.issubdtype(x.dtype, jnp.floating)]
    pairs = zip(sizes, _held(batch), strict=True)
    of_arrays = sum(size for size, leaf in pairs if len(leaf) == 1)
    return 2 * of_arrays > sum(sizes)


def comes_by_turns(rule: Rule) -> bool:
    """Whether a few rows at a time tell a rule all it asks of them, each by itself.

    Other rules look at all of them, of the coordinates that a device is dealt.
    """
    match rule:
        case Fold():
            return True
        case Weighting():
            return _is_of_one(Reads(rule.reads)) and not rule.remembers
        case Noised():
            return comes_by_turns(rule.rule)
        case Among():
            return comes_by_turns(rule.selector) and comes_by_turns(rule.rule)
        case After(first=Scaling() | Probing() as first):
            return _is_of_one(Reads(first.reads)) and comes_by_turns(rule.rule)
    return False


def _is_of_one(reads: Reads) -> bool:
    return reads.lengths or reads == Reads.NOTHING


def _held(batch: Batch) -> list[list[Any]]:
    """For every leaf the arrays that are held of its rows: one, or two factors each."""

    def held() -> list[list[jax.Array]]:
        _, rows = value_and_rows(batch.fun, batch.arranged, batch.has_aux)
        leaves = jax.tree.leaves(rows, is_leaf=is_outer_product)
        return [x.held if is_outer_product(x) else [x] for x in leaves]

    return jax.eval_shape(held)


def _reads_in_passes(rule: Rule, on_mesh: bool) -> bool:
    """Whether a rule asks for nothing but sums over rows, or inner products of them.

    Or mixes them first. On a mesh inner products of pairs, and what is mixed, are taken
    of rows that are held anyway.
    """
    match rule:
        case Fold():
            return True
        case Columns():
            return not on_mesh
        case Weighting():
            return not on_mesh or not Reads(rule.reads).pairs
        case Among():
            several = rule.selector, rule.rule
            return all(_reads_in_passes(each, on_mesh) for each in several)
        case After(first=Mixing()):
            return not on_mesh and _reads_in_passes(rule.rule, on_mesh)
        case After(first=Scaling() | Probing() as first):
            in_passes = not on_mesh or not Reads(first.reads).pairs
            return in_passes and _reads_in_passes(rule.rule, on_mesh)
    return False


def _bytes(array: jax.Array | jax.ShapeDtypeStruct) -> int:
    return math.prod(array.shape) * array.dtype.itemsize
