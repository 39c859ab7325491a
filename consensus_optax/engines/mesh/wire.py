"""What travels in the place of numbers: narrower ones, or messages of a compressor."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax import _check
from consensus_optax._rows.finite import cleared
from consensus_optax._rows.outer_product import is_outer_product
from consensus_optax._rows.verbs import AnyLeaf, Leaf
from consensus_optax._rules.kinds import (
    After,
    Among,
    Columns,
    Fold,
    Mixing,
    Noised,
    Reads,
    Rule,
)
from consensus_optax._running.memory import as_sent
from consensus_optax._typing import Array
from consensus_optax.compressors._compressor import (
    Compressor,
    checked_compressor,
    keys_of_leaf,
    keys_of_rows,
)
from consensus_optax.engines.mesh.exchange import Exchange
from consensus_optax.engines.mesh.spread import Spread

# Rows are counted from 0: there are not as many.
_OF_UPDATE = 2**31 - 1


class Wire(NamedTuple):
    """How rows and update travel.

    Attributes:
      dtype: that of numbers if theirs is wider, or None.
      rows: compressor of rows, or None.
      update: compressor of the update, or None.
    """

    dtype: Any = None
    rows: Compressor | None = None
    update: Compressor | None = None

    @classmethod
    def checked(
        cls, dtype: Any, rows: Any, update: Any, rule: Rule, reducer: Any
    ) -> Wire:
        """From the arguments of ``sharded``."""
        dtype = _checked_dtype(dtype, rule)
        if rows is not None:
            checked_compressor("wire", rows)
            if rows.is_sparse and _compares_coordinates(rule):
                wanted = (
                    f"one that sends every coordinate, for {reducer!r} compares rows "
                    "coordinate by coordinate and would take what is left out for zeros"
                )
                hint = ". Take one that rounds, such as `co.compressors.natural`"
                _check.fail("wire", wanted, rows, hint)
        if update is not None:
            checked_compressor("update_wire", update)
            if update.factor is not None:
                _check.fail("update_wire", "one of entries, not of matrices", update)
        return cls(dtype, rows, update)

    @property
    def is_plain(self) -> bool:
        """Whether everything travels as it is."""
        return self.dtype is None and self.rows is None and self.update is None

    @property
    def codes_rows(self) -> bool:
        """Whether what is dealt out is messages; of factors it is the factors."""
        return self.rows is not None and self.rows.factor is None

    def ready(self, leaves: Sequence[Leaf], reads_signs: bool) -> list[Leaf]:
        """Rows in the dtype in which they are compressed, or travel."""
        if self.rows is not None:
            return [rounded(leaf, jnp.dtype("float32")) for leaf in leaves]
        if self.dtype is None or reads_signs:
            return list(leaves)
        return [rounded(leaf, self.dtype) for leaf in leaves]

    def factored(
        self, leaves: Sequence[Leaf], exchange: Exchange, there: Array, step: Array
    ) -> list[Leaf]:
        """Rows as the thin products that are to be sent, where the compressor does so.

        Raises:
          ValueError: when traced, no device has a whole matrix.
        """
        if self.rows is None or self.rows.factor is None:
            return list(leaves)
        if exchange.cut_along:
            wanted = "one of entries: parameters are cut, and no device has a matrix"
            _check.fail("wire", wanted, self.rows)
        keys = _own_keys(self.rows, exchange, step, there.shape[0])
        return [
            self.rows.factor(cleared(leaf, there), keys_of_leaf(keys, number))
            for number, leaf in enumerate(leaves)
        ]

    def deal(
        self, leaves: Sequence[AnyLeaf], exchange: Exchange, there: Array, step: Array
    ) -> list[Array]:
        """Rows to this device's coordinates of all rows, (N L, width), in float32."""
        code = self.rows
        assert code is not None
        count, device = exchange.num_devices, lax.axis_index(exchange.axis_name)
        num_rows = there.shape[0]
        own = _own_keys(code, exchange, step, num_rows)
        every = keys_of_rows(code, step, jnp.arange(count * num_rows, dtype=jnp.int32))
        arrays = [as_sent(cleared(x, there), False, jnp.float32) for x in leaves]
        parts = [exchange.parts(*each) for each in enumerate(arrays)]  # (L, N, width)
        sent = []
        for number, part in enumerate(parts):
            keys = _keys_of_part(own, number, exchange.spreads[number])
            numbers = jnp.arange(count, dtype=jnp.int32)
            encode = functools.partial(_encoded, code)
            of_parts = jax.vmap(encode, (0, None, 0))
            sent.append(jax.vmap(of_parts, (0, 0, None))(part, keys, numbers))
        blocks = []
        for number, bits in enumerate(exchange.deal_parts(sent)):  # (N L, bytes)
            part, spread = parts[number], exchange.spreads[number]
            keys = _keys_of_part(every, number, spread)
            decode = functools.partial(_decoded, code, part.shape[2:], part.dtype)
            block = jax.vmap(decode, (0, 0, None))(bits, keys, device)
            clear = lambda row, s=spread: s.layout.unpadded(row, device, count)
            blocks.append(jax.vmap(clear)(block))
        return blocks

    def collect(
        self, blocks: Sequence[Array], exchange: Exchange, step: Array
    ) -> list[Array]:
        """Blocks of an update to whole leaves, all devices the same."""
        code = self.update
        assert code is not None
        count, device = exchange.num_devices, lax.axis_index(exchange.axis_name)
        keys = keys_of_rows(code, step, jnp.full(1, _OF_UPDATE, jnp.int32))
        by_leaf = [_keys_of_part(keys, *each) for each in enumerate(exchange.spreads)]
        own = [None if key is None else key[0] for key in by_leaf]
        leaves = list(zip(blocks, exchange.spreads, own, strict=True))
        messages = [
            _encoded(code, spread.layout.unpadded(x, device, count), key, device)
            for x, spread, key in leaves
        ]
        numbers, found = jnp.arange(count, dtype=jnp.int32), exchange.gather(messages)
        whole = []
        for bits, (x, spread, key) in zip(found, leaves, strict=True):  # (N, bytes)
            decode = functools.partial(_decoded, code, x.shape, x.dtype)
            parts = jax.vmap(decode, (0, None, 0))(bits, key, numbers)
            whole.append(spread.layout.joined(parts))
        return whole


def reads_signs(rule: Rule) -> bool:
    """Whether signs may travel in place of rows."""
    return isinstance(rule, Fold) and rule.reads_signs


def update_dtype(dtype: Any, wire: Any) -> Any:
    """The narrower one; the updates that a vote of signs makes need not be signs."""
    if wire is None or not jnp.issubdtype(wire, jnp.floating):
        return dtype
    return min(dtype, wire, key=lambda dtype: dtype.itemsize)


def rounded(leaf: Leaf, wire: Any) -> Leaf:
    """The rows in the dtype in which they travel, if that is narrower than theirs."""
    if wire.itemsize >= leaf.dtype.itemsize:
        return leaf
    return (leaf.materialize() if is_outer_product(leaf) else leaf).astype(wire)


def _checked_dtype(dtype: Any, rule: Rule) -> Any:
    """The dtype in which numbers travel, None for theirs."""
    if dtype is None:
        return None
    try:
        wire = jnp.dtype(dtype)
    except TypeError:
        wire = None
    of_signs = wire == jnp.int8 and reads_signs(rule)
    if wire is None or not (of_signs or jnp.issubdtype(wire, jnp.floating)):
        wanted = "a floating dtype, or int8 for a fold that reads nothing but signs"
        _check.fail("wire_dtype", wanted, dtype)
    return wire


def _compares_coordinates(rule: Rule) -> bool:
    """Whether a rule looks at single entries of rows, not only at inner products."""
    match rule:
        case Fold() | Columns():
            return True
        case Among(selector=first):
            return first.reads == Reads.SIGNS or _compares_coordinates(rule.rule)
        case After(first=first):
            of_signs = isinstance(first, Mixing) and first.reads == Reads.SIGNS
            return of_signs or _compares_coordinates(rule.rule)
        case Noised():
            return _compares_coordinates(rule.rule)
    return rule.reads == Reads.SIGNS


def _own_keys(code: Compressor, exchange: Exchange, step: Array, num_rows: int) -> Any:
    """Keys of this device's rows, by their number among all rows."""
    first = lax.axis_index(exchange.axis_name) * num_rows
    return keys_of_rows(code, step, first + jnp.arange(num_rows, dtype=jnp.int32))


def _keys_of_part(keys: Any, number: int, spread: Spread) -> Any:
    """Keys of rows for a leaf, or for the part of it that a device has."""
    keys = keys_of_leaf(keys, number)
    if keys is None or not spread.mesh_axes:
        return keys
    return jax.vmap(jax.random.fold_in, (0, None))(
        keys, lax.axis_index(spread.mesh_axes)
    )


def _encoded(code: Compressor, array: Array, key: Any, number: Any) -> Array:
    """The message of piece ``number`` of an array, as bytes."""
    key = None if key is None else jax.random.fold_in(key, number)
    message = jax.tree.leaves(code.compress(array, key))
    return jnp.concatenate([_bytes_of(x) for x in message])


def _decoded(
    code: Compressor,
    shape: tuple[int, ...],
    dtype: Any,
    bits: Array,
    key: Any,
    number: Any,
) -> Array:
    """The array of a message."""
    key = None if key is None else jax.random.fold_in(key, number)
    given = jax.ShapeDtypeStruct(shape, dtype)
    likes, treedef = jax.tree.flatten(jax.eval_shape(code.compress, given, key))
    sizes = [like.size * like.dtype.itemsize for like in likes]
    ends = list(itertools.accumulate(sizes))
    pieces = [bits[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    parts = [_from_bytes(*each) for each in zip(pieces, likes, strict=True)]
    return code.decompress(jax.tree.unflatten(treedef, parts), shape, key)


def _bytes_of(array: Array) -> Array:
    """An array as bytes, one after the other."""
    if array.dtype == jnp.uint8:
        return array.reshape(-1)
    return lax.bitcast_convert_type(array, jnp.uint8).reshape(-1)


def _from_bytes(bits: Array, like: Any) -> Array:
    """The inverse."""
    if like.dtype == jnp.uint8:
        return bits.reshape(like.shape)
    shape = (math.prod(like.shape), like.dtype.itemsize)
    return lax.bitcast_convert_type(bits.reshape(shape), like.dtype).reshape(like.shape)
