"""Products on the wire: multiplied out, or as factors where these are less to send."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from consensus_optax._rows.addition import one_product
from consensus_optax._rows.outer_product import OuterProduct, restored
from consensus_optax._rows.slabs import Slab, slab_of
from consensus_optax._rows.sums import SumOfProducts
from consensus_optax._rows.verbs import AnyLeaf, Leaf, Mixed
from consensus_optax._rows.views import as_matrix, reshaped, unshared
from consensus_optax._running.memory import as_sent
from consensus_optax._typing import Array
from consensus_optax.engines.mesh.layout import Layout, Stay


class Factors(NamedTuple):
    """Products of which one factor is dealt out, and the other is sent to everyone.

    Columns of one factor and all of the other multiply to columns of the rows, so a
    device ends up with products again: with slabs of the (M, N) matrices, or of the
    parameter. Of a look-up each device is dealt all indices, as lines of its slab.

    Attributes:
      leaf: the rows of this device.
      dealt: which factor is dealt out, ``"left"`` or ``"right"``.
      stays: where slabs of the parameter are wanted, or None.
      slab: these.
    """

    leaf: OuterProduct
    dealt: str
    stays: Stay | None = None
    slab: Slab | None = None

    @property
    def layout(self) -> Layout | None:
        """How the parameter's coordinates lie; None: as those of its slabs do."""
        if self.slab is not None:
            return None
        layers, (_, m, n) = self.leaf.num_layers or 1, self.leaf.sides
        sides = (layers, m, n) if self.dealt == "left" else (layers * m, n, 1)
        return Layout(
            sides,
            functools.partial(as_matrix, self.leaf),
            functools.partial(restored, self.leaf),
        )

    @property
    def whole(self) -> Array:
        """The factor that everyone gets, (L, entries)."""
        factor = self.leaf.right if self.dealt == "left" else self.leaf.left
        return factor.reshape(factor.shape[0], -1)

    @property
    def _deals_lines(self) -> bool:
        return self.dealt == "left" and self.leaf.is_look_up

    def parts(self, count: int) -> Array:
        """The other one in parts, (L, N, width)."""
        same = lambda array: array
        if self._deals_lines:
            assert self.slab is not None
            assert self.stays is not None
            numbers = jnp.arange(count, dtype=jnp.int32)
            slabs = self.stays.layout((1, count, 1), same).parts(numbers, count)
            own = lambda number: self.slab.lines(self.leaf.left, number, count)
            lines = jax.vmap(own, out_axes=1)(slabs[:, 0])  # (L, N, ...)
            return lines.reshape(*lines.shape[:2], -1)
        factor = self.leaf.left if self.dealt == "left" else self.leaf.right
        _, *terms, length = factor.shape
        run = math.prod(terms), length, 1
        layout = Layout(run, same, same)
        if self.slab is not None and self.stays is not None:
            outer, length, inner = self.slab.run
            run = math.prod(terms) * outer, length, inner
            layout = self.stays.layout(run, same)
        return jax.vmap(functools.partial(layout.parts, count=count))(factor)

    def block(self, part: Array, whole: Array) -> OuterProduct:
        """This device's coordinates of all rows, from what it was sent."""
        kept = self.leaf.right if self.dealt == "left" else self.leaf.left
        _, *layers, terms, _ = self.leaf.right.shape
        whole = whole.reshape(-1, *kept.shape[1:])
        width = () if self._deals_lines else (-1,)
        part = part.reshape(part.shape[0], *layers, terms, *width)
        _, m, n = self.leaf.sides
        left, right = (part, whole) if self.dealt == "left" else (whole, part)
        if self.slab is not None:
            block = self.slab.of(self.leaf, left, right)
            return reshaped(block, (math.prod(self.slab.row_shape),))
        if self.dealt == "left":
            m = part.shape[-1]
        else:
            n = part.shape[-1]
        shape = (*layers, m, n)
        block = dataclasses.replace(
            self.leaf, left=left, right=right, row_shape=shape, steps=()
        )
        return reshaped(block, (math.prod(shape),))


def as_travelling(
    leaf: AnyLeaf, count: int, signs: bool, dtype: Any, stays: Stay | None = None
) -> Array | Factors:
    """Rows, or their signs in int8, as they are dealt to so many devices.

    ``stays``: where devices shall have slabs of the parameter.
    """
    leaf = _one(leaf)
    if isinstance(leaf, OuterProduct):
        _, dealt, slab = _least(leaf, count, signs, stays)
        if dealt:
            leaf = unshared(leaf)
            leaf = _signs(leaf) if _has_signs(leaf, signs) else leaf
            return Factors(leaf, dealt, stays, slab)
    return as_sent(leaf, signs, dtype)


def bytes_each(
    leaf: AnyLeaf, count: int, signs: bool, stays: Stay | None = None
) -> int:
    r"""Bytes that a device sends to each of the other N - 1 for its rows of one leaf.

    .. math:: L \min(\lceil M K / N \rceil, T (M + \lceil K / N \rceil),
        T (K + \lceil M / N \rceil))

    numbers for L rows of T terms, M by K each: multiplied out, with the right factor
    dealt out, with the left one; where slabs of the parameter are wanted, the one that
    they cut. Of a look-up M is 1 in the second, M / N in the third, which is there for
    slabs alone; every layer has T terms of its own. Parts of a matrix may be filled up
    more than those of an array: what an update sends for that is added.
    """
    return _least(leaf, count, signs, stays)[0]


def stays_for_less(leaf: Leaf, count: int, signs: bool, stay: Stay) -> bool:
    """Whether devices with slabs of a parameter send less, the update included.

    Of rows of all devices; the update of slabs stays where it is.
    """
    length, part = leaf.shape[0] // count, -(-math.prod(leaf.shape[1:]) // count)
    ways = [_least(leaf, count, signs, where, length)[0] for where in (stay, None)]
    return ways[0] <= ways[1] + part * leaf.dtype.itemsize


def _least(
    leaf: AnyLeaf,
    count: int,
    signs: bool,
    stays: Stay | None,
    length: int | None = None,
) -> tuple[int, str, Slab | None]:
    """These bytes, which factor is dealt out, "" if none is, and slabs of it."""
    leaf = _one(leaf)
    rows: Any = leaf.leaf if isinstance(leaf, Mixed) else leaf
    length = rows.shape[0] if length is None else length
    part = lambda size: -(-size // count)
    least = part(math.prod(rows.shape[1:]))
    itemsize = 1 if signs else rows.dtype.itemsize
    options: list[Any] = [(length * least * itemsize, "", None)]
    if isinstance(leaf, OuterProduct) and not any(leaf.spec):
        layers, (terms, m, n) = leaf.num_layers or 1, leaf.sides
        sizes = [
            1 if _has_signs(leaf, signs) else factor.dtype.itemsize
            for factor in (leaf.left, leaf.right)
        ]

        def sent(left: int, right: int, width: int) -> int:
            there = layers * terms * (left * sizes[0] + right * sizes[1])
            return length * there + (layers * width - least) * leaf.dtype.itemsize

        slab = None if stays is None else slab_of(leaf, stays.axis, count)
        lines, of_part = (1, 1) if leaf.is_look_up else (m, part(m))
        if stays is None or (slab and slab.side == "right"):
            options += [(sent(lines, part(n), m * part(n)), "right", slab)]
        if (stays is None and not leaf.is_look_up) or (slab and slab.side == "left"):
            options += [(sent(of_part, n, part(m) * n), "left", slab)]
    return min(options, key=lambda option: option[0])


def _one(leaf: AnyLeaf) -> AnyLeaf:
    """A sum of products as one, where it can be that: one factor of it is dealt out."""
    one = one_product(leaf) if isinstance(leaf, SumOfProducts) else leaf
    return leaf if one is None else one


def _has_signs(leaf: OuterProduct, signs: bool) -> bool:
    """Whether signs of factors multiply to the signs that are asked for."""
    return signs and not leaf.is_look_up and leaf.sides[0] == 1


def _signs(leaf: OuterProduct) -> OuterProduct:
    """Products of the signs of vectors, in int8."""
    of = lambda factor: jnp.sign(factor).astype(jnp.int8)
    return dataclasses.replace(leaf, left=of(leaf.left), right=of(leaf.right))
