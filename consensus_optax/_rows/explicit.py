"""Explicit mesh axes, along which the type of every array says how it is cut.

JAX then asks how the result of every operation is to be cut. Algebra on rows leaves
that to the compiler: it runs with these axes automatic, and what comes out is cut as
the caller says. Automatic and manual axes need nothing of this.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from consensus_optax._typing import Array

_EXPLAINED = (
    "This was raised with arrays along explicit mesh axes {}, where JAX may need to be "
    "told how a result is cut (`out_sharding=`, `jax.sharding.reshard`). The loss sees "
    "the examples of one row, so in it an axis that cuts the batch cuts nothing: name "
    "other axes alone. `jax.sharding.auto_axes`, or a mesh with `AxisType.Auto`, "
    "leaves it to the compiler."
)


def explicit_mesh(*trees: Any) -> Any:
    """The mesh along whose explicit axes arrays lie, None if there is none."""
    for leaf in jax.tree.leaves(trees):
        if isinstance(leaf, jax.Array):
            mesh = jax.typeof(leaf).sharding.mesh
            if mesh.explicit_axes:
                return mesh
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


def explained(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose errors say what is particular to explicit axes if any are."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if mesh := explicit_mesh(args, kwargs):
                error.add_note(_EXPLAINED.format(mesh.explicit_axes))
            raise

    return run


def of_each_row(function: Callable[..., Array], leaves: Sequence[Any]) -> Array:
    """``function(leaves)``, (B,) numbers, which lie where the rows do."""
    first = jax.tree.leaves(leaves)[0]
    return automatic(function, (leaves,), PartitionSpec(spec_of(first)[0]))


def spec_of(array: Any) -> PartitionSpec:
    """How an array is cut along explicit axes, one entry for every axis."""
    if explicit_mesh(array) is None:
        return PartitionSpec(*[None] * jnp.ndim(array))
    return jax.typeof(array).sharding.spec


def reshaped(array: Array, shape: tuple[int, ...], ends: Sequence[int]) -> Array:
    """A reshape that joins the axes up to each of ``ends`` to one.

    On explicit axes what is joined stays cut if its first axis is, those of size 1
    aside.
    """
    mesh = explicit_mesh(array)
    if mesh is None:
        return array.reshape(shape)
    spec = spec_of(array)
    kept: list[Any] = []
    for start, end in itertools.pairwise((0, *ends)):
        sides = [axis for axis in range(start, end) if array.shape[axis] > 1]
        whole = all(spec[axis] is None for axis in sides[1:])
        kept.append(spec[sides[0]] if sides and whole else None)
    return array.reshape(shape, out_sharding=NamedSharding(mesh, PartitionSpec(*kept)))


def joined(array: Array, start: int, end: int) -> Array:
    """The array with its axes from ``start`` to ``end`` joined to one."""
    side = math.prod(array.shape[start:end])
    shape = (*array.shape[:start], side, *array.shape[end:])
    axes = [axis + 1 for axis in range(array.ndim) if not start <= axis < end - 1]
    return reshaped(array, shape, axes)


def apart(array: Array, axis: int, sides: tuple[int, ...]) -> Array:
    """The array with one axis split into several, which is then not cut."""
    shape = (*array.shape[:axis], *sides, *array.shape[axis + 1 :])
    mesh, spec = explicit_mesh(array), spec_of(array)
    if mesh is None:
        return array.reshape(shape)
    spec = PartitionSpec(*spec[:axis], *[None] * len(sides), *spec[axis + 1 :])
    return array.reshape(shape, out_sharding=NamedSharding(mesh, spec))


def concatenated(x: Array, y: Array) -> Array:
    """The terms T of two factors (..., T, M), in the dtype and the place of the first.

    The axis of terms itself is not cut.
    """
    *others, _, last = spec_of(x)
    join = lambda x, y: jnp.concatenate([x, y.astype(x.dtype)], -2)
    return automatic(join, (x, y), PartitionSpec(*others, None, last))


def whole_along_rows(args: Sequence[Any], in_axes: Sequence[int | None]) -> list[Any]:
    """What all rows share, gathered along the mesh axes that cut the rows.

    As ``jax.vmap`` asks on explicit axes: a device needs all of what its rows are
    gradients of.
    """
    pairs = list(zip(args, in_axes, strict=True))
    rows = jax.tree.leaves([arg for arg, axis in pairs if axis == 0])
    names = {name for array in rows for name in names_of(spec_of(array)[0])}

    def gather(array: Any) -> Any:
        if not isinstance(array, jax.Array):  # a number, a string, a function
            return array
        spec = spec_of(array)
        if not any(names & set(names_of(entry)) for entry in spec):
            return array
        kept = (tuple(n for n in names_of(entry) if n not in names) for entry in spec)
        whole = PartitionSpec(*(entry or None for entry in kept))
        return jax.sharding.reshard(array, NamedSharding(explicit_mesh(array), whole))

    return [arg if axis == 0 else jax.tree.map(gather, arg) for arg, axis in pairs]


def names_of(entry: Any) -> tuple[str, ...]:
    """The mesh axes of one entry of a spec."""
    if entry is PartitionSpec.UNCONSTRAINED:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry or ())
