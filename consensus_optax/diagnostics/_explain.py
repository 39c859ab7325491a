"""Which gradients stay factored, which do not, and why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh

from consensus_optax import _check
from consensus_optax._gradients.arguments import Argnums, Arranged, arranger
from consensus_optax._gradients.batch_axes import watched
from consensus_optax._gradients.contraction import ends_of_rows, unfinished
from consensus_optax._gradients.leaves import is_array
from consensus_optax._gradients.per_example import value_and_grad_of_row
from consensus_optax._rows.outer_product import OuterProduct, is_outer_product
from consensus_optax._rows.sums import parts_of
from consensus_optax._typing import AxisName
from consensus_optax.diagnostics._explain_tasks import task_arranger, task_rows

Line = tuple[str, str, str]  # path, shape, how it comes


def explain(
    fun: Callable[..., Any],
    *args: Any,
    argnums: Argnums = 0,
    batch_argnums: Argnums = 1,
    has_aux: bool = False,
    keep_batch_dim: bool = True,
    group_size: int | None = None,
    num_rows: int | None = None,
    prng_argnum: int | None = None,
    spmd_axis_name: AxisName | None = None,
    tasks: bool = False,
) -> None:
    """Prints, for every parameter, how :func:`per_example_grad` gives its rows.

    One line for each leaf: path, shape, then ``factored`` with the sides T x (M + N)
    of its outer products (of every layer, if ``lax.scan`` goes over layers) and the
    memory they save, or ``array`` with the operation in which its gradient ends.
    Nothing is computed but shapes. With arrays along a mesh, or a mesh that is set,
    that is how it is on this mesh, and a leaf that is factored on one device alone is
    named.

    Of several losses, as :func:`task_grad` takes them, a line also says which of them
    have a gradient in the leaf, where not all have: the others' rows are zeros that
    nobody computes. If they end in different operations, it says who does in which.

    Args:
      fun: see :func:`per_example_grad`; so are all keywords.
      *args: its arguments; shapes are enough (``jax.ShapeDtypeStruct``).
      argnums: what to differentiate.
      batch_argnums: which arguments have the example axis.
      has_aux: whether ``fun`` returns (value, aux).
      keep_batch_dim: whether ``fun`` sees a batch axis.
      group_size: how many examples make one row; None for 1, of several losses for
        the whole batch.
      num_rows: how many rows there are, instead; of several losses, of each.
      prng_argnum: which argument is a random key.
      spmd_axis_name: mesh axes that cut the rows.
      tasks: whether ``fun`` returns several losses, as for :func:`task_grad`.

    Returns:
      None.

    Examples:
      >>> import jax.numpy as jnp, consensus_optax as co
      >>> loss = lambda p, x: jnp.mean((x @ p["w"] + p["b"]) ** 2)
      >>> co.explain(loss, {"w": jnp.ones((64, 32)), "b": jnp.ones(32)},
      ...            jnp.ones((8, 64)))
      ['b']  (32,)     array: ends in reduce_sum
      ['w']  (64, 32)  factored: 1 x (64 + 32), saves 61.0 KiB of 64.0 KiB
      >>> losses = lambda p, x: {"fit": loss(p, x), "l2": jnp.sum(p["b"] ** 2)}
      >>> co.explain(losses, {"w": jnp.ones((64, 32)), "b": jnp.ones(32)},
      ...            jnp.ones((8, 64)), tasks=True)
      rows of 2 losses: ['fit'], ['l2']
      ['b']  (32,)     array: ends in reduce_sum of ['fit'], mul of ['l2']
      ['w']  (64, 32)  factored: 8 x (64 + 32), saves 10.0 KiB of 16.0 KiB; ['fit']
    """
    _check.flag("tasks", tasks)
    said: list[str] = []
    if tasks:
        arrange = task_arranger(
            argnums, batch_argnums, keep_batch_dim, group_size, num_rows, prng_argnum
        )
    else:
        arrange = arranger(
            argnums,
            batch_argnums,
            keep_batch_dim,
            1 if group_size is None else group_size,
            prng_argnum,
            spmd_axis_name,
            num_rows=num_rows,
        )

    def rows_and_ends(arranged: Arranged) -> tuple[Any, list[tuple[str, str]]]:
        """Rows, and for every leaf where it ends and what else there is to say."""
        if tasks:
            groups = group_size is not None or num_rows is not None
            rows, ends, header = task_rows(fun, arranged, has_aux, groups)
            said[:] = [header]
            return rows, ends
        function, in_axes, traced = value_and_grad_of_row(fun, arranged, has_aux)
        given = {"rows_axis": watched(fun, arranged)}
        ends = ends_of_rows(function, in_axes, *traced, **given)
        rows = unfinished(function, in_axes, *traced, **given)[1]
        return rows, [(end, "") for end in ends]

    def texts_of(*args: Any) -> list[Line]:
        lines: list[Line] = []
        leaves, treedef = jax.tree.flatten(args)
        shapes = {i: leaf for i, leaf in enumerate(leaves) if _is_shape(leaf)}

        def write(shapes: dict[int, Any]) -> None:
            given = [shapes.get(i, leaf) for i, leaf in enumerate(leaves)]
            rows, ends = rows_and_ends(arrange(jax.tree.unflatten(treedef, given)))
            flatten = jax.tree_util.tree_flatten_with_path
            flat, _ = flatten(rows, is_leaf=is_outer_product)
            for (path, leaf), (end, note) in zip(flat, ends, strict=True):
                name = jax.tree_util.keystr(path) or "(root)"
                lines.append((name, str(leaf.shape[1:]), _line(leaf, end) + note))

        jax.eval_shape(write, shapes)
        return lines

    lines = texts_of(*args)
    mesh = _mesh_of(args)
    if mesh is not None:
        sizes = ", ".join(f"{name}: {size}" for name, size in mesh.shape.items())
        print(f"on this mesh ({sizes}):")  # noqa: T201
        lines = _compared(lines, _off_mesh(texts_of, args))
    for line in said:
        print(line)  # noqa: T201
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    for path, shape, text in lines:
        print(f"{path:{widths[0]}}  {shape:{widths[1]}}  {text}")  # noqa: T201


def _off_mesh(texts_of: Callable[..., list[Line]], args: Any) -> list[Line] | None:
    """What is said of the same arguments on one device; None where that has none.

    A loss that names axes of the mesh has no meaning without them.
    """
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    bare = lambda x: shape(x) if hasattr(x, "sharding") else x
    try:
        with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
            return texts_of(*jax.tree.map(bare, args))
    except (ValueError, TypeError, NameError, KeyError):
        return None


def _mesh_of(args: Any) -> Any:
    """The mesh that is set, or along which arguments lie; None if there is none."""
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(args)]
    meshes = [
        jax.sharding.get_abstract_mesh(),
        *(getattr(x, "mesh", None) for x in shardings),
    ]
    return next((mesh for mesh in meshes if mesh is not None and not mesh.empty), None)


def _compared(lines: list[Line], off_mesh: list[Line] | None) -> list[Line]:
    """The lines, loud where a leaf is factored on one device alone."""
    if off_mesh is None:
        return lines

    def loud(line: Line, bare: Line) -> Line:
        lost = line[2].startswith("array") and bare[2].startswith("factored")
        more = f"; NOT FACTORED ON THIS MESH, without it {bare[2]}" if lost else ""
        return (*line[:2], line[2] + more)

    return [loud(*pair) for pair in zip(lines, off_mesh, strict=True)]


def _is_shape(leaf: Any) -> bool:
    """Whether a leaf stands for an array; what is there reaches the loss as it is."""
    return is_array(leaf) and not isinstance(leaf, np.ndarray | np.generic | jax.Array)


def _line(leaf: Any, end: str) -> str:
    if not is_outer_product(leaf):
        return f"array: ends in {end}"
    whole = leaf.size * leaf.dtype.itemsize
    saved = _kib(whole - sum(x.size * x.dtype.itemsize for x in leaf.held))
    layers = "" if leaf.num_layers is None else f"{leaf.num_layers} layers of "
    sides = " and ".join(map(_sides, parts_of(leaf)))
    return f"factored: {layers}{sides}, saves {saved} of {_kib(whole)}"


def _sides(part: OuterProduct) -> str:
    if part.is_one_array:
        return "an array that all rows share"
    terms, m, n = part.sides
    left = f"{m} looked up" if part.is_look_up else f"{m}"
    return f"{terms} x ({left} + {n})"


def _kib(number: int) -> str:
    return f"{number / 1024:.1f} KiB"
