"""Explicit mesh axes, along which the type of every array says how it is cut.

JAX then asks how the result of every operation is to be cut. Algebra on rows leaves
that to the compiler: it runs with these axes automatic, and what comes out is cut as
the caller says. Automatic and manual axes need nothing of this.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from consensus_optax._typing import Array


def explicit_mesh(*trees: Any) -> Any:
    """The mesh along whose explicit axes arrays lie, None if there is none."""
    for leaf in jax.tree.leaves(trees):
        sharding = getattr(jax.typeof(leaf), "sharding", None)
        if sharding is not None and sharding.mesh.explicit_axes:
            return sharding.mesh
    return None


def automatic(function: Callable[..., Any], args: Any, specs: Any) -> Any:
    """``function(*args)`` with explicit axes automatic meanwhile.

    Args:
      function: of arrays, which must all be among its arguments.
      args: trees of arrays.
      specs: how its results are cut along explicit axes, a tree that may be a prefix
        of theirs.
    """
    mesh = explicit_mesh(args)
    if mesh is None:
        return function(*args)
    out = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    free = jax.sharding.auto_axes(function, axes=mesh.explicit_axes, out_sharding=out)
    return jax.jit(free)(*args)  # eagerly a mesh would have to be set


def spec_of(array: Any) -> PartitionSpec:
    """How an array is cut along explicit axes, one entry for every axis."""
    sharding = getattr(jax.typeof(array), "sharding", None)
    if sharding is None or not sharding.mesh.explicit_axes:
        return PartitionSpec(*[None] * jax.typeof(array).ndim)
    return sharding.spec


def joined_spec(array: Any, ends: Sequence[int]) -> PartitionSpec:
    """The spec of an array whose axes up to each of ``ends`` are joined to one.

    Axes that are joined can stay cut if the first of them is, those of size 1 aside.
    """
    spec, joined = spec_of(array), []
    for start, end in itertools.pairwise((0, *ends)):
        sides = [axis for axis in range(start, end) if array.shape[axis] > 1]
        first = spec[sides[0]] if sides else None
        whole = all(spec[axis] is None for axis in sides[1:])
        joined.append(first if whole else None)
    return PartitionSpec(*joined)


def reshaped(array: Array, shape: tuple[int, ...], spec: PartitionSpec) -> Array:
    """A reshape whose result is cut so along explicit axes."""
    mesh = explicit_mesh(array)
    if mesh is None:
        return array.reshape(shape)
    return array.reshape(shape, out_sharding=NamedSharding(mesh, spec))


def whole_along_rows(args: Sequence[Any], in_axes: Sequence[int | None]) -> list[Any]:
    """What all rows share, gathered along the mesh axes that cut the rows.

    As ``jax.vmap`` asks on explicit axes: a device needs all of what its rows are
    gradients of.
    """
    pairs = list(zip(args, in_axes, strict=True))
    rows = jax.tree.leaves([arg for arg, axis in pairs if axis == 0])
    names = {name for array in rows for name in _names(spec_of(array)[0])}

    def gather(array: Any) -> Any:
        spec = spec_of(array)
        if not any(names & set(_names(entry)) for entry in spec):
            return array
        kept = (tuple(n for n in _names(entry) if n not in names) for entry in spec)
        whole = PartitionSpec(*(entry or None for entry in kept))
        return jax.sharding.reshard(array, NamedSharding(explicit_mesh(array), whole))

    shared = lambda arg, axis: arg if axis == 0 or not names else jax.tree.map(gather, arg)
    return [shared(*pair) for pair in pairs]


def _names(entry: Any) -> tuple[str, ...]:
    """The mesh axes of one entry of a spec."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())
