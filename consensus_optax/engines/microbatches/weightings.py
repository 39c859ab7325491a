"""Weightings over microbatches: inner products first, then one weighted backward pass.

No stack is ever held. The Gramian of k microbatches takes the gradients of every pair
of them, (k + 3) / 2 times the work of one pass; what reads norms or nothing takes one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._rows import verbs
from consensus_optax._rows.stack import as_stack
from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._rules.kinds import Weighting
from consensus_optax._running.products import border, over_leaves
from consensus_optax._typing import Array
from consensus_optax.engines.microbatches.batches import Block, Microbatches


class FirstPass(NamedTuple):
    """What the first pass leaves behind, rows in their order.

    Attributes:
      products: what the weighting reads.
      weights: (B,), 0 for rows that cannot count.
      num_nonfinite: () int32.
      value: what the function returned for each row.
    """

    products: Any
    weights: Array
    num_nonfinite: Array
    value: Any


def first_pass(
    rule: Weighting, microbatches: Microbatches, previous: list[Array] | None
) -> FirstPass:
    """Inner products of all rows, from gradients computed a few rows at a time."""
    pairwise = rule.reads not in ("norms", "nothing")
    around_mean = rule.reads in ("centered", "affine")
    centers = _centers(microbatches) if around_mean else None

    def step(carry: None, block: Block) -> tuple[None, Any]:
        leaves, dtype = _read(rule, block, centers), block.stack.dtype
        products: list[Any] = [None for _ in leaves]
        sides: list[Any] = [None for _ in leaves]
        if rule.reads == "norms":
            products = [verbs.squared_norms(leaf, dtype) for leaf in leaves]
        elif pairwise:
            products = _with_earlier(rule, block, microbatches, centers)
        if previous is not None:
            olds = _read_previous(rule, previous, centers)
            pairs = zip(leaves, olds, strict=True)
            sides = [verbs.inner_products(leaf, old) for leaf, old in pairs]
        kept = (block.weights, block.num_nonfinite, block.value)
        return carry, (products, sides, kept)

    _, (products, sides, kept) = microbatches.scan(step, None)
    weights, value = microbatches.in_order((kept[0], kept[2]))
    present = weights > 0
    if rule.reads == "norms":
        norms = microbatches.in_order(products)
        products = [jnp.where(present, leaf, 0) for leaf in norms]
    elif pairwise:
        pairs = present[:, None] & present[None, :]
        joined = [_join(leaf, microbatches) for leaf in products]
        products = [jnp.where(pairs, leaf, 0) for leaf in joined]
        if previous is not None:
            sides = [jnp.where(present, x, 0) for x in microbatches.in_order(sides)]
            olds = _read_previous(rule, previous, centers)
            triples = zip(products, sides, olds, strict=True)
            products = [border(*triple) for triple in triples]
        if around_mean:
            products = [_recentered(leaf, weights) for leaf in products]
    given = over_leaves(rule, products)
    return FirstPass(given, weights, kept[1].sum(), value)


def second_pass(
    rule: Weighting, weights: Array, microbatches: Microbatches
) -> list[Array]:
    """sum_i w_i g_i, leaf by leaf: one plain backward pass if all leaves agree on w."""

    def combine_leaves(index: Array) -> list[Array]:
        if rule.scope == "model":
            gradient = microbatches.weighted_grad(index, weights)
            stacked = jax.tree.map(lambda leaf: leaf[None], gradient)
            stack = as_stack(stacked, microbatches.params)
            return [leaf[0].astype(stack.dtype) for leaf in stack.leaves]
        block = microbatches.block(index)
        taken = microbatches.indices[index]
        padded = lambda w: w.at[taken].get(mode="fill", fill_value=0)
        return [
            verbs.combine(leaf, padded(w), block.rows.order)
            for leaf, w in zip(block.stack.leaves, weights, strict=True)
        ]

    def step(carry: list[Array], index: Array) -> tuple[list[Array], None]:
        return jax.tree.map(jnp.add, carry, combine_leaves(index)), None

    indices = jnp.arange(microbatches.indices.shape[0])
    shapes = jax.eval_shape(combine_leaves, indices[0])
    zeros = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in shapes]
    zeros = microbatches.arranged.varying(zeros)
    total = lax.scan(step, zeros, indices)[0]
    some = jnp.any(weights != 0)  # else there is no sound row to stand in
    return [jnp.where(some, leaf, 0) for leaf in total]


def _centers(microbatches: Microbatches) -> list[Array]:
    """A point near the rows, from the first microbatch; the mean is taken off later."""
    block = microbatches.block(0)
    rows = block.rows
    return [verbs.combine(leaf, rows.shares, rows.order) for leaf in block.stack.leaves]


def _read(rule: Weighting, block: Block, centers: list[Array] | None) -> list[Any]:
    """The leaves whose inner products the weighting reads."""
    leaves, dtype = block.stack.leaves, block.stack.dtype
    if rule.reads == "signs":
        return [verbs.signs(leaf, dtype) for leaf in leaves]
    if centers is None:
        return leaves
    pairs = zip(leaves, centers, strict=True)
    return [verbs.as_array(leaf, dtype) - center[None] for leaf, center in pairs]


def _read_previous(
    rule: Weighting, previous: list[Array], centers: list[Array] | None
) -> list[Array]:
    """The previous update in the same terms."""
    if rule.reads == "signs":
        return [jnp.sign(old) for old in previous]
    if centers is None:
        return previous
    return [old - center for old, center in zip(previous, centers, strict=True)]


def _with_earlier(
    rule: Weighting,
    block: Block,
    microbatches: Microbatches,
    centers: list[Array] | None,
) -> list[Array]:
    """Inner products with all microbatches up to this one, (k, m, m), later ones 0."""
    leaves, dtype = _read(rule, block, centers), block.stack.dtype

    def against(index: Any, filled: list[Array]) -> list[Array]:
        others = _read(rule, microbatches.block(index), centers)
        triples = zip(filled, leaves, others, strict=True)
        return [
            out.at[index].set(verbs.cross_gramian(x, y, dtype)) for out, x, y in triples
        ]

    count, size = microbatches.indices.shape
    empty = [jnp.zeros((count, size, size), dtype) for _ in leaves]
    empty = microbatches.arranged.varying(empty)
    return lax.fori_loop(0, block.index + 1, against, empty)


def _join(blocks: Array, microbatches: Microbatches) -> Array:
    """Lower blocks (k, k, m, m) to the symmetric (B, B), in the order of the rows."""
    count, size = microbatches.indices.shape
    lower = jnp.arange(count)[:, None] >= jnp.arange(count)[None, :]
    mirrored = blocks.transpose(1, 0, 3, 2)
    full = jnp.where(lower[:, :, None, None], blocks, mirrored)
    joined = full.transpose(2, 0, 3, 1).reshape(count * size, count * size)
    num_rows = microbatches.arranged.num_rows
    return joined[:num_rows, :num_rows]


def _recentered(gramian: Array, weights: Array) -> Array:
    """The Gramian of rows less their weighted mean; a bordering row has no weight."""
    extra = gramian.shape[0] - weights.shape[0]
    total = weights.sum()
    shares = jnp.pad(weights / positive_or_one(total), (0, extra))
    present = jnp.pad(weights > 0, (0, extra), constant_values=True)
    with_mean = jnp.matmul(gramian, shares, precision=lax.Precision.HIGHEST)
    mean = jnp.vdot(shares, with_mean, precision=lax.Precision.HIGHEST)
    centered = gramian - with_mean[:, None] - with_mean[None, :] + mean
    return jnp.where(present[:, None] & present[None, :], centered, 0)
