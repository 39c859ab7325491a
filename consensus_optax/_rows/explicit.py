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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from consensus_optax._typing import Array

_EXPLAINED = (
    "This was raised with arrays along explicit mesh axes {}, where JAX may need to be "
    "told how a result is cut (`out_sharding=`, `jax.sharding.reshard`). The loss sees "
    "the examples of one row, so in it an axis that cuts the batch cuts nothing: where "
    "it says `P('data', None, 'model')` of a batch cut along 'data', let it say "
    "`P(None, None, 'model')`; rows stay cut along 'data'. `jax.sharding.auto_axes`, "
    "or a mesh with `AxisType.Auto`, leaves it to the compiler."
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


def freed(function: Callable[..., Any], given: Any, specs: Any) -> Any:
    """``function(*given)`` with explicit axes automatic meanwhile, whatever is given.

    Of the leaves of ``given``, those that are no arrays reach it as they are.
    """
    if explicit_mesh(given) is None:
        return function(*given)
    run, arrays, _ = _of_arrays(function, given)
    return automatic(run, arrays, specs)


class Explicit(NamedTuple):
    """Axes that are explicit outside of `freed`, and how arrays lie along them there.

    Attributes:
      axes: their names; none if there is nothing to bring back.
      specs: how the arrays of a tree are cut, a tree like it.
    """

    axes: tuple[str, ...]
    specs: Any

    @classmethod
    def of(cls, given: Any) -> Explicit:
        """As the arrays among ``given`` lie."""
        mesh = explicit_mesh(given)
        own = lambda x: spec_of(x) if isinstance(x, jax.Array) else PartitionSpec()
        return cls(mesh.explicit_axes if mesh else (), jax.tree.map(own, given))

    @classmethod
    def along_rows(cls, args: Sequence[Any], in_axes: Sequence[int | None]) -> Explicit:
        """As arguments are to lie for ``jax.vmap``."""
        mesh = explicit_mesh(args)
        specs = specs_along_rows(args, in_axes)
        return cls(mesh.explicit_axes if mesh else (), specs)

    def of_rows(self, in_axes: Sequence[int | None], count: int) -> list[Any]:
        """Specs of so few rows: as all lie, if the devices can share them alike."""
        sizes = jax.sharding.get_abstract_mesh().shape

        def of_some(spec: PartitionSpec) -> PartitionSpec:
            names = names_of(spec[0]) if len(spec) else ()
            fits = count % math.prod(sizes[name] for name in names) == 0
            return spec if fits else PartitionSpec(None, *spec[1:])

        is_spec = lambda x: isinstance(x, PartitionSpec)
        return [
            spec if axis is None else jax.tree.map(of_some, spec, is_leaf=is_spec)
            for spec, axis in zip(self.specs, in_axes, strict=True)
        ]


def explicit_again(function: Callable[..., Any], given: Any, explicit: Explicit) -> Any:
    """``function(*given)`` inside of `freed`, with axes as explicit as outside."""
    if not explicit.axes:
        return function(*given)
    run, arrays, places = _of_arrays(function, given)
    is_spec = lambda x: isinstance(x, PartitionSpec)
    specs = jax.tree.leaves(explicit.specs, is_leaf=is_spec)
    own = tuple(specs[i] for i in places)
    made: list[Any] = []

    def flat(*arrays: Array) -> list[Array]:  # rows are sealed where they were made
        leaves, treedef = jax.tree.flatten(run(*arrays))
        made.append(treedef)
        return leaves

    again = jax.sharding.explicit_axes(flat, axes=explicit.axes, in_sharding=own)
    leaves: Any = again(*arrays)
    return jax.tree.unflatten(made[0], leaves)


def _of_arrays(
    function: Callable[..., Any], given: Any
) -> tuple[Callable[..., Any], list[Array], list[int]]:
    """The function of the arrays among what is given, they, and their places."""
    leaves, treedef = jax.tree.flatten(given)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

    def run(*arrays: Array) -> Any:
        known = dict(zip(places, arrays, strict=True))
        whole = [known.get(i, leaf) for i, leaf in enumerate(leaves)]
        return function(*jax.tree.unflatten(treedef, whole))

    return run, [leaves[i] for i in places], places


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


def in_groups(array: Any, count: int, size: int) -> Any:
    """(count size, ...) to (count, size, ...), cut along the groups if these can be."""
    mesh = explicit_mesh(array)
    if mesh is not None and count % size_of(names_of(spec_of(array)[0]), mesh):
        return apart(array, 0, (count, size))
    return array.reshape(count, size, *array.shape[1:])


def concatenated(x: Array, y: Array) -> Array:
    """The terms T of two factors (..., T, M), in the dtype and the place of the first.

    The axis of terms itself is not cut.
    """
    *others, _, last = spec_of(x)
    join = lambda x, y: jnp.concatenate([x, y.astype(x.dtype)], -2)
    return automatic(join, (x, y), PartitionSpec(*others, None, last))


def specs_along_rows(args: Sequence[Any], in_axes: Sequence[int | None]) -> list[Any]:
    """How arguments lie as ``jax.vmap`` asks for them on explicit axes.

    Rows of all of them are cut alike. What all rows share is gathered along the mesh
    axes that cut the rows: a device needs all of what its rows are gradients of.
    """
    pairs = list(zip(args, in_axes, strict=True))
    rows = jax.tree.leaves([arg for arg, axis in pairs if axis == 0])
    cuts = [cut for array in rows if (cut := spec_of(array)[0]) is not None]
    names = {name for cut in cuts for name in names_of(cut)}

    def wanted(array: Any, axis: int | None) -> PartitionSpec:
        if not isinstance(array, jax.Array):  # a number, a string, a function
            return PartitionSpec()
        spec = spec_of(array)
        if axis == 0:
            return PartitionSpec(cuts[0] if cuts else None, *spec[1:])
        own = [tuple(n for n in names_of(x) if n not in names) or None for x in spec]
        return PartitionSpec(*own)

    of_arg = lambda arg, axis: jax.tree.map(lambda x: wanted(x, axis), arg)
    return list(itertools.starmap(of_arg, pairs))


def along_rows(args: Sequence[Any], in_axes: Sequence[int | None]) -> list[Any]:
    """Arguments that lie so."""
    mesh = explicit_mesh(args)
    if mesh is None:
        return list(args)

    def lay(array: Any, wanted: PartitionSpec) -> Any:
        if not isinstance(array, jax.Array):
            return array
        if tuple(map(names_of, wanted)) == tuple(map(names_of, spec_of(array))):
            return array
        return jax.sharding.reshard(array, NamedSharding(mesh, wanted))

    return jax.tree.map(lay, list(args), specs_along_rows(args, in_axes))


def zeros_as(shapes: Any) -> Any:
    """Zeros of these shapes, cut as they are along explicit axes."""

    def zeros(x: Any) -> Array:
        lies = x.sharding
        cut = lies is not None and lies.mesh.explicit_axes
        return jnp.zeros(x.shape, x.dtype, device=lies if cut else None)

    return jax.tree.map(zeros, shapes)


def names_of(entry: Any) -> tuple[str, ...]:
    """The mesh axes of one entry of a spec."""
    if entry is PartitionSpec.UNCONSTRAINED:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def size_of(axes: Sequence[str], mesh: Any) -> int:
    """How many devices there are along some mesh axes."""
    return math.prod(mesh.shape[name] for name in axes)
