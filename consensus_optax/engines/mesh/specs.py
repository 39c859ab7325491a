"""Meshes and partition specs: where a reducer runs, and how parameters lie there."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from consensus_optax._rows.explicit import names_of, size_of
from consensus_optax._rows.slabs import run_of
from consensus_optax._rows.verbs import Leaf
from consensus_optax._typing import Array, Tree
from consensus_optax.engines.mesh.factors import stays_for_less
from consensus_optax.engines.mesh.layout import Stay, flat_layout
from consensus_optax.engines.mesh.spread import Spread


def is_inside(axes: tuple[str, ...]) -> bool:
    """Whether this is traced inside a ``shard_map`` over these mesh axes."""
    return set(axes) <= set(jax.sharding.get_abstract_mesh().manual_axes)


def mesh_of(mesh: Any, axes: tuple[str, ...]) -> Any:
    """The mesh given, or that of the context.

    Raises:
      ValueError: it does not have the axes.
    """
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    if not set(axes) <= set(mesh.axis_names):
        raise ValueError(
            f"Mesh axes {axes} are not there: call this inside a `jax.shard_map` over "
            "them, or give `mesh=`, or use `jax.set_mesh`; the mesh here has axes "
            f"{tuple(mesh.axis_names)}."
        )
    return mesh


def automatic_mesh(mesh: Any, axes: tuple[str, ...]) -> Any:
    """The same for who computes along axes that are automatic, if only meanwhile."""
    here = jax.sharding.get_abstract_mesh()
    mesh = mesh_of(mesh if here.empty else None, axes)
    if AxisType.Explicit not in mesh.axis_types:
        return mesh
    if not here.empty:
        raise ValueError(
            f"The axes {mesh.axis_names} of the mesh that is set are explicit, and "
            "neither parameters nor batch lie there: place them first, as by "
            "`jax.device_put(batch, jax.P('data'))`, or set a mesh with automatic axes."
        )
    kinds = (AxisType.Auto,) * len(mesh.axis_names)  # of arrays that lie nowhere yet
    return jax.sharding.Mesh(mesh.devices, mesh.axis_names, axis_types=kinds)


def specs_of(params: Tree, given: Tree) -> list[PartitionSpec]:
    """One spec for every floating parameter, with one entry for every array axis.

    Args:
      params: arrays.
      given: a tree of specs that may be a prefix of theirs; None for what is known of
        arrays along explicit axes.
    """
    if given is None:
        specs = jax.tree.map(_explicit_spec, params)
    else:
        specs = jax.tree.broadcast(given, params)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(specs), strict=True)
    return [
        PartitionSpec(*spec, *[None] * (len(param.shape) - len(spec)))
        for param, spec in pairs
        if jnp.issubdtype(param.dtype, jnp.floating)
    ]


def check_inside(specs: list[PartitionSpec], axes: tuple[str, ...]) -> None:
    """Inside ``shard_map`` a device must have what its rows are gradients of."""
    if any(set(axes) & set(names) for spec in specs for names in _names(spec)):
        raise ValueError(
            "`param_specs` must not name the axes of the rows inside `jax.shard_map`; "
            f"got {specs} with rows along {axes}. Gather the parameters first."
        )


def check_varying(leaves: list[Any], axes: tuple[str, ...]) -> None:
    """Inside ``shard_map``, where types tell, devices must have rows of their own.

    Raises:
      ValueError: no leaf varies along one of the axes: what `jax.grad` gives by
        parameters that are the same everywhere is summed over devices.
    """
    varying = set[str]().union(*map(_varies_along, jax.tree.leaves(leaves)))
    for axis in axes:
        tells = axis in _varies_along(lax.axis_index(axis))
        if tells and axis not in varying and lax.axis_size(axis) > 1:
            raise ValueError(
                f"Every device along {axis!r} has the same rows. Inside "
                "`jax.shard_map`, `jax.grad` by parameters that all devices share sums "
                "over the devices, so each row is the total: use `co.worker_grad` or "
                "`co.per_example_grad`. Rows that are meant to be equal take "
                f"`jax.lax.pcast(rows, {axis!r}, to='varying')`."
            )


def _varies_along(array: Any) -> frozenset[str]:
    """Mesh axes along which the type of an array says that devices differ."""
    kind = jax.typeof(array)
    found = getattr(getattr(kind, "manual_axis_type", kind), "varying", None)
    return getattr(kind, "vma", frozenset()) if found is None else found


def manual(spec: PartitionSpec) -> PartitionSpec:
    """The spec of what a device has of an array inside ``shard_map``.

    Along an axis that is not manual there, an array is whole to whoever calculates.
    """
    names = jax.sharding.get_abstract_mesh()
    return without(spec, (*names.auto_axes, *names.explicit_axes))


def without(spec: PartitionSpec, axes: tuple[str, ...]) -> PartitionSpec:
    """The spec less some mesh axes."""
    kept = [tuple(name for name in names if name not in axes) for names in _names(spec)]
    return PartitionSpec(*(names or None for names in kept))


def spread_of(
    shape: tuple[int, ...], spec: PartitionSpec, stays: Stay | None = None
) -> Spread:
    """How a parameter lies of which a device has a part of this shape."""
    layout = flat_layout(shape)
    if stays is not None:
        layout = stays.layout(run_of(shape, stays.axis), layout.restore)
    return Spread(shape, tuple(_names(spec)), layout, stays)


def stays(
    leaf: Leaf, spec: PartitionSpec, axes: tuple[str, ...], mesh: Any, signs: bool
) -> Stay | None:
    """Where the update of a parameter is to stay, if rows are dealt out there.

    The parameter is cut along axes of the rows by one of its own alone, within the
    parts that other mesh axes cut, of which ``leaf`` is one; and less is sent so.
    """
    cut = [(i, own) for i, own in enumerate(_names(spec)) if set(own) & set(axes)]
    if len(cut) != 1:
        return None
    ((axis, own),) = cut
    names = own[-len(set(own) & set(axes)) :]
    if not set(names) <= set(axes):
        return None
    others = tuple(name for name in axes if name not in names)
    stay, count = Stay(axis, names, (*names, *others), axes), size_of(axes, mesh)
    even = leaf.shape[1 + axis] % count == 0
    return stay if even and stays_for_less(leaf, count, signs, stay) else None


def place(tree: Tree, specs: Tree, mesh: Any) -> Tree:
    """Brings arrays to their specs, of which the tree may be a prefix."""
    explicit = AxisType.Explicit in mesh.axis_types
    hidden = [
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if explicit and kind is not AxisType.Explicit
    ]

    def put(leaf: Array, spec: PartitionSpec) -> Array:
        sharding = NamedSharding(mesh, without(spec, tuple(hidden)))
        if explicit:
            return jax.sharding.reshard(leaf, sharding)
        return lax.with_sharding_constraint(leaf, sharding)

    return jax.tree.map(put, tree, jax.tree.broadcast(specs, tree))


def _explicit_spec(param: Any) -> PartitionSpec:
    """What the type of an array says of its place."""
    sharding = jax.typeof(param).sharding if isinstance(param, jax.Array) else None
    return PartitionSpec() if sharding is None else sharding.spec


def _names(spec: PartitionSpec) -> list[tuple[str, ...]]:
    """For every array axis the mesh axes that it is cut along."""
    return [names_of(entry) for entry in spec]
