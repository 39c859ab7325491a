"""Rows to coordinates and back: one all-to-all, one all-gather.

Device n of N holds of every leaf the n-th of N equal parts, of all rows. How a leaf is
cut into parts is its `Layout`; where factors travel, one more all-gather brings what
every device needs of them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._rows.verbs import Leaf
from consensus_optax._rules.coordinates import Coordinates
from consensus_optax._typing import Array, AxisName
from consensus_optax.engines.mesh.factors import Factors
from consensus_optax.engines.mesh.spread import Spread


class Exchange(NamedTuple):
    """Leaves as this device has them, and the mesh axes their rows are dealt along.

    Attributes:
      axis_name: one or several mesh axes, N devices.
      spreads: of the parameters.
    """

    axis_name: AxisName
    spreads: Sequence[Spread]

    @property
    def num_devices(self) -> int:
        """N."""
        return lax.axis_size(self.axis_name)

    @property
    def stays(self) -> bool:
        """Whether any update stays in place."""
        return any(spread.stays is not None for spread in self.spreads)

    def deal(self, leaves: Sequence[Array]) -> list[Array]:
        """Rows (L, ...) of this device to its coordinates of all rows, (N L, width)."""
        return self.deal_parts([self.parts(*each) for each in enumerate(leaves)])

    def deal_rows(self, leaves: Sequence[Array | Factors]) -> list[Leaf]:
        """The same of products as well: where factors travel, blocks are products."""
        factored = {i: x for i, x in enumerate(leaves) if isinstance(x, Factors)}
        parts = [
            x.parts(self.num_devices) if isinstance(x, Factors) else self.parts(i, x)
            for i, x in enumerate(leaves)
        ]
        dealt = self.deal_parts(parts)
        gather = lambda strung: lax.all_gather(strung, self.axis_name, tiled=True)
        own = [x.whole for x in factored.values()]
        wholes = _strung(own, [self.spreads[i] for i in factored], gather)
        pairs = zip(factored.items(), wholes, strict=True)
        blocks = {i: x.block(dealt[i], whole) for (i, x), whole in pairs}
        return [blocks.get(i, block) for i, block in enumerate(dealt)]

    def laid_out(self, leaves: Sequence[Array | Factors]) -> Exchange:
        """The same for the blocks that dealing these rows makes."""
        spreads = [
            spread._replace(layout=x.layout or spread.layout)
            if isinstance(x, Factors)
            else spread
            for spread, x in zip(self.spreads, leaves, strict=True)
        ]
        return self._replace(spreads=spreads)

    def collect(self, blocks: Sequence[Array]) -> list[Array]:
        """Blocks of coordinates (width,) to whole leaves, the same on every device."""
        pairs = zip(self.spreads, self.gather(blocks), strict=True)
        return [spread.layout.joined(parts) for spread, parts in pairs]

    def settle(self, blocks: Sequence[Array]) -> list[Array]:
        """The same, but of what stays where it is the slab that this device has."""
        sent = [i for i, spread in enumerate(self.spreads) if spread.stays is None]
        others = self._replace(spreads=[self.spreads[i] for i in sent])
        whole = iter(others.collect([blocks[i] for i in sent]))
        return [
            next(whole) if spread.stays is None else spread.settled(block, spread.stays)
            for block, spread in zip(blocks, self.spreads, strict=True)
        ]

    def summed(self, own: Sequence[Array]) -> list[Array]:
        """What each device has for the leaves, summed: of what stays the slab alone."""
        pairs = list(zip(own, self.spreads, strict=True))
        whole = [x for x, spread in pairs if spread.stays is None]
        sums = iter(lax.psum(whole, self.axis_name))
        return [
            next(sums) if spread.stays is None else spread.summed(x, spread.stays)
            for x, spread in pairs
        ]

    def slabs(self, leaves: Sequence[Array]) -> list[Array]:
        """Leaves, whole or not, to this device's slabs of those that stay in place."""
        pairs = zip(self.spreads, leaves, strict=True)
        return [spread.slab(leaf) for spread, leaf in pairs]

    def unslabbed(self, slabs: Sequence[Array]) -> list[Array]:
        """The inverse."""
        pairs = zip(self.spreads, slabs, strict=True)
        return [spread.unslabbed(slab) for spread, slab in pairs]

    def gather(self, own: Sequence[Array]) -> list[Array]:
        """What each device has for a leaf, (width,), to that of all, (N, width)."""
        send = lambda strung: lax.all_gather(strung, self.axis_name, to="invarying")
        return _strung(own, self.spreads, send)

    def collect_rows(self, own: Array) -> Array:
        """What there is for every row, on the last axis, of all rows."""
        axis = own.ndim - 1
        return lax.all_gather(
            own, self.axis_name, axis=axis, tiled=True, to="invarying"
        )

    def own_rows(self, of_all: Array) -> Array:
        """The inverse: this device's share of what there is for every row."""
        count = of_all.shape[-1] // self.num_devices
        start = lax.axis_index(self.axis_name) * count
        return lax.dynamic_slice_in_dim(of_all, start, count, -1)

    def own_block(self, index: int, leaf: Array) -> Array:
        """The coordinates that this device holds of leaf ``index``, (width,)."""
        parts = self.spreads[index].layout.parts(leaf, self.num_devices)
        device = lax.axis_index(self.axis_name)
        return lax.dynamic_index_in_dim(parts, device, keepdims=False)

    @property
    def cut_along(self) -> tuple[str, ...]:
        """Mesh axes that any parameter is cut along."""
        every = (name for spread in self.spreads for name in spread.mesh_axes)
        return tuple(dict.fromkeys(every))

    def of_combined(self) -> Coordinates:
        """Likewise, and of updates the slabs of those that stay in place."""

        def draw(index: int, leaf: Array, make: Callable[..., Array]) -> Array:
            del leaf
            return self.spreads[index].slab(self._drawn(index, make))

        def sums(leaves: Sequence[Array]) -> list[Array]:
            pairs = zip(rows.sums(leaves), self.spreads, strict=True)
            return [spread.total(own) for own, spread in pairs]

        rows = self.of_rows()
        if not self.stays:
            return rows
        whole = lambda slabs, exact: self.unslabbed(slabs) if exact else slabs
        return rows._replace(sums=sums, draw=draw, own=self.slabs, whole=whole)

    def of_rows(self) -> Coordinates:
        """Whole rows are at hand, as far as the parameters are."""
        coordinates = self._coordinates((), lambda index, leaf: leaf)
        return coordinates._replace(
            draw=lambda index, leaf, make: self._drawn(index, make)
        )

    def of_blocks(
        self,
        dtypes: Sequence[Any],
        collect: Callable[[Sequence[Array]], list[Array]] | None = None,
    ) -> Coordinates:
        """An N-th of the coordinates, padded, is at hand; updates travel in dtypes.

        Or as ``collect`` sends them, unless they must be exact.
        """
        axes = (self.axis_name,) if isinstance(self.axis_name, str) else self.axis_name

        def unpadded(index: int, block: Array) -> Array:
            device, count = lax.axis_index(self.axis_name), self.num_devices
            return self.spreads[index].layout.unpadded(block, device, count)

        def draw(index: int, leaf: Array, make: Callable[..., Array]) -> Array:
            del leaf
            return self.own_block(index, self._drawn(index, make))

        def whole(blocks: list[Array], exact: bool) -> list[Array]:
            if collect is not None and not exact:
                pairs = zip(collect(blocks), blocks, strict=True)
                return [leaf.astype(block.dtype) for leaf, block in pairs]
            wanted = [block.dtype for block in blocks] if exact else dtypes
            pairs = zip(blocks, wanted, strict=True)
            send = self.collect if exact else self.settle
            pairs = zip(send([narrowed(*x) for x in pairs]), blocks, strict=True)
            return [leaf.astype(block.dtype) for leaf, block in pairs]

        own = lambda leaves: [self.own_block(*each) for each in enumerate(leaves)]
        of_all = self._coordinates(axes, unpadded)
        return of_all._replace(draw=draw, own=own, whole=whole)

    def _drawn(self, index: int, make: Callable[..., Array]) -> Array:
        """What is made like the whole of parameter ``index``, as far as it is here."""
        spread = self.spreads[index]
        return spread.part(make(spread.whole))

    def _coordinates(
        self, axes: tuple[str, ...], unpadded: Callable[[int, Array], Array]
    ) -> Coordinates:
        """Sums over the devices of ``axes`` and those with parts of the parameters."""
        cut = self.cut_along
        total: Callable[[Any], Any] = lambda tree: tree
        if everywhere := (*axes, *cut):
            total = lambda tree: lax.psum(tree, everywhere)

        def counted(leaves: list[Array]) -> list[Array]:
            if not cut:
                return leaves
            others = [set(cut) - set(spread.mesh_axes) for spread in self.spreads]
            pairs = zip(leaves, others, strict=True)
            return [jnp.where(_is_first(names), leaf, 0) for leaf, names in pairs]

        def sums(leaves: Sequence[Array]) -> list[Array]:
            own = [jnp.sum(unpadded(index, leaf)) for index, leaf in enumerate(leaves)]
            return list(total(jnp.stack(counted(own))))

        sizes = lambda leaves: [math.prod(spread.whole) for spread in self.spreads]
        return Coordinates(total, sums, sizes, alike=not cut, counted=counted)

    def parts(self, index: int, leaf: Array) -> Array:
        """Rows (L, ...) of one leaf cut into N equal parts, (L, N, width)."""
        cut = self.spreads[index].layout.parts
        return jax.vmap(functools.partial(cut, count=self.num_devices))(leaf)

    def deal_parts(self, parts: Sequence[Array]) -> list[Array]:
        """To every device its part of all rows, (N L, width)."""

        def send(strung: Array) -> Array:  # (L, N, W)
            by_device = strung.swapaxes(0, 1)
            dealt = lax.all_to_all(by_device, self.axis_name, 0, 0, tiled=True)
            return dealt.reshape(math.prod(dealt.shape[:2]), dealt.shape[2])  # (N L, W)

        return _strung(parts, self.spreads, send)


def narrowed(block: Array, dtype: Any) -> Array:
    """The block in a dtype, unless it is in a narrower one already."""
    narrower = jnp.dtype(dtype).itemsize < block.dtype.itemsize
    return block.astype(dtype) if narrower else block


def _strung(
    arrays: Sequence[Array], spreads: Sequence[Spread], send: Callable[[Array], Array]
) -> list[Array]:
    """Sends alike arrays strung together along the last axis: few launches."""
    sent: dict[int, Array] = {}
    kinds: list[Hashable] = [
        (array.dtype, spread.mesh_axes)
        for array, spread in zip(arrays, spreads, strict=True)
    ]
    for kind in dict.fromkeys(kinds):
        chosen = [i for i, other in enumerate(kinds) if other == kind]
        strung = jnp.concatenate([arrays[i] for i in chosen], -1)
        result = _as_bits(send, strung)
        start = 0
        for i in chosen:
            end = start + arrays[i].shape[-1]
            sent[i], start = result[..., start:end], end
    return [sent[i] for i in range(len(arrays))]


def _as_bits(send: Callable[[Array], Array], array: Array) -> Array:
    """Sends half-precision numbers as integers, for XLA may send them in float32."""
    if array.dtype.itemsize >= 4 or not jnp.issubdtype(array.dtype, jnp.floating):
        return send(array)
    bits = lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}")
    return lax.bitcast_convert_type(send(bits), array.dtype)


def _is_first(axes: set[str]) -> Array:
    """Whether this device is the first along mesh axes that all hold the same."""
    first = jnp.ones((), bool)
    for name in sorted(axes):
        first &= lax.axis_index(name) == 0
    return first
