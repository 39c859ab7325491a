"""The stack of rows: gradients checked against the parameters they are gradients of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import dtypes, lax

from consensus_optax._rows import verbs
from consensus_optax._rows.finite import cleared, finite_rows, guarded
from consensus_optax._rows.outer_product import is_outer_product
from consensus_optax._rows.seal import MISSING
from consensus_optax._rows.sums import with_held
from consensus_optax._rows.trees import arrays_of, leaf_name, pair, shapes_of
from consensus_optax._rows.verbs import Leaf
from consensus_optax._typing import Array, Tree


class Stack(NamedTuple):
    r"""The floating leaves of a tree of rows.

    Attributes:
      leaves: arrays (B, \*shape) or outer products.
      num_rows: B.
      params: the parameter of each leaf.
      dtype: dtype in which rules decide and sum.
      rebuild: list of updates, one for every leaf, to a tree like the parameters.
      like: shapes of all parameters, a tree.
    """

    leaves: list[Any]
    num_rows: int
    params: list[Any]
    dtype: Any
    rebuild: Callable[[list[Array]], Tree]
    like: Tree


def as_stack(updates: Tree, params: Tree) -> Stack:
    """Checks that every leaf of ``updates`` is (B,) + its parameter's shape.

    Leaves that carry no gradient (integers, booleans, float0) pass: their update is
    zero. ``None`` and ``optax.MaskedNode`` are no leaves.

    Raises:
      ValueError: at trace time, naming the leaf, both shapes and the likely cause.
    """
    if params is None:
        raise ValueError(
            "A reducer needs `params` to tell the example axis from the parameters' "
            "axes; got None. Call `update(rows, state, params)`."
        )
    params = arrays_of(params)
    paths, rows, given, treedef = pair(updates, params)
    num_rows: int | None = None
    for path, leaf, param in zip(paths, rows, given, strict=True):
        _check_leaf(path, leaf, param)
        if num_rows is not None and leaf.shape[0] != num_rows:
            raise ValueError(
                f"All leaves must have one number of rows B; {paths[0]} has "
                f"{num_rows}, {path} has {leaf.shape[0]}."
            )
        num_rows = leaf.shape[0]
    floating = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in rows]

    def rebuild(reduced: list[Array]) -> Tree:
        queue = iter(reduced)
        leaves = [
            next(queue).astype(param.dtype) if is_floating else _no_update(leaf, param)
            for leaf, param, is_floating in zip(rows, given, floating, strict=True)
        ]
        return jax.tree.unflatten(treedef, leaves)

    moving = [i for i, is_floating in enumerate(floating) if is_floating]
    leaves, moved = [_on_device(rows[i]) for i in moving], [given[i] for i in moving]
    dtype, like = verbs.decision_dtype(given), shapes_of(params)
    return Stack(leaves, num_rows or 0, moved, dtype, rebuild, like)


def as_rows(updates: Tree, params: Tree | None) -> tuple[list[Leaf], Any]:
    """Floating leaves and dtype of decisions, for what keeps the example axis.

    Without parameters the shapes cannot be checked here; the reducer will.
    """
    if params is not None:
        stack = as_stack(updates, params)
        return stack.leaves, stack.dtype
    flat, _ = jax.tree_util.tree_flatten_with_path(updates, is_leaf=is_outer_product)
    leaves: list[Leaf] = []
    for path, leaf in flat:
        check_seal(leaf_name(path), leaf)
        if not hasattr(leaf, "dtype") or not jnp.ndim(leaf):
            found = "a scalar" if jnp.isscalar(leaf) else f"a {type(leaf).__name__}"
            raise ValueError(
                "Every leaf of `rows` must be an array that leads with the axis of "
                f"rows, (B, ...); {leaf_name(path)} is {found}."
            )
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            leaves.append(_on_device(leaf))
            if leaf.shape[0] != leaves[0].shape[0]:
                raise ValueError(
                    "All leaves of `rows` must have one number of rows B; "
                    f"{leaf_name(path)} has {leaf.shape[0]}, another "
                    f"{leaves[0].shape[0]}."
                )
    return leaves, verbs.decision_dtype(leaves)


def _on_device(leaf: Leaf) -> Leaf:
    """A NumPy array as one of jax, which loops can index."""
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf


def _check_leaf(path: str, leaf: Leaf, param: Any) -> None:
    """Raises unless the leaf is (B,) + param.shape with B >= 1 and not complex."""
    check_seal(path, leaf)
    shape = tuple(getattr(leaf, "shape", ()))
    wanted = tuple(param.shape)
    if shape[1:] != wanted or len(shape) != len(wanted) + 1:
        if shape == wanted:
            cause = (
                "It has no example axis: was it already averaged, or reduced twice, or "
                "is the reducer inside of `optax.MultiSteps` (`co.accumulate` waits)? "
                "Pass rows, as `co.per_example_grad` or `jax.vmap(jax.grad(f), "
                "(None, 0))` give them, to one reducer."
            )
        elif shape[: len(wanted)] == wanted:
            cause = "Its example axis must lead: use `out_axes=0`."
        else:
            cause = "Are these the rows of other parameters?"
        raise ValueError(
            f"Every leaf must be (B,) + its parameter's shape; {path} is {shape}, its "
            f"parameter {wanted}, so (B, {', '.join(map(str, wanted))}) is needed. "
            f"{cause}"
        )
    if shape[0] == 0:
        raise ValueError(f"The example axis must not be empty; {path} is {shape}.")
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        raise ValueError(
            f"Rows must be real, since complex numbers have no sign; {path} is "
            f"{leaf.dtype}. Hold real and imaginary parts as two leaves."
        )


def check_seal(path: str, leaf: Leaf) -> None:
    """Raises if something was calculated with the factors of rows."""
    if is_outer_product(leaf) and not leaf.is_intact:
        raise ValueError(
            f"The factors of {path} are not those of its rows any more. {MISSING}"
        )


def unknown(rows: Tree) -> Tree:
    """Rows that are constants of the program that is traced, as it does not know them.

    XLA would take (c s)^2 of a constant c for c^2 s^2, which is no float where the
    scale s of rows is there to make one of it.
    """
    if not isinstance(jnp.zeros(()), jax.core.Tracer):
        return rows

    def hidden(x: Any) -> Any:
        known = isinstance(x, jax.Array | np.ndarray)
        known = known and not isinstance(x, jax.core.Tracer)
        return lax.optimization_barrier(x) if known else x

    hide = lambda x: (
        with_held(x, list(map(hidden, x.held))) if is_outer_product(x) else hidden(x)
    )
    return jax.tree.map(hide, rows, is_leaf=is_outer_product)


def check_reduced(updates: Tree, like: Tree, every: bool = False) -> None:
    """Raises unless updates have their parameters' shapes, for what follows a reducer.

    Of leaves that carry no gradient only if asked to: memories hold none of them.

    Raises:
      ValueError: when traced, naming the leaf, both shapes and the likely cause.
    """
    cause = "Is the reducer missing? It comes before, in `optax.chain`."
    check_like(updates, like, "updates", cause, every)


def check_like(
    updates: Tree, like: Tree, called: str, cause: str = "", every: bool = True
) -> None:
    """Raises unless trees have leaves of the same shapes, saying what they are called.

    Raises:
      ValueError: when traced, naming the leaf, both shapes and the likely cause.
    """
    triples = zip(*pair(updates, like, called)[:3], strict=True)
    for name, leaf, wanted in triples:
        moves = every or jnp.issubdtype(leaf.dtype, jnp.floating)
        if moves and leaf.shape != wanted.shape:
            found = f"{name} is {leaf.shape}, its parameter {wanted.shape}. {cause}"
            raise ValueError(
                f"{called.capitalize()} must have their parameters' shapes here; "
                f"{found.rstrip()}"
            )


def _no_update(leaf: Leaf, param: Any) -> Any:
    """The zero update of a leaf that carries no gradient."""
    if leaf.dtype == dtypes.float0:
        return np.zeros(param.shape, dtypes.float0)
    return jnp.zeros(param.shape, leaf.dtype)


def present_weights(
    stack: Stack,
    weights: Array | None,
    everywhere: Callable[[Array], Array] = lambda finite: finite,
) -> tuple[Array, Array]:
    """Weights with 0 for every row that cannot count, and the number of such rows.

    Absent on request: weight 0. Absent for what is wrong with them, and counted by the
    second result: any non-finite entry in any leaf, or a weight that is none (see
    :func:`checked_weights`). ``everywhere`` adds what other devices find in their parts
    of the same rows.
    """
    weights = checked_weights(weights, stack.num_rows, stack.dtype)
    finite = finite_rows(stack.leaves, stack.dtype)
    sound = everywhere(finite) & (weights > 0)
    num_wrong = jnp.sum((weights != 0) & ~sound, dtype=jnp.int32)
    return jnp.where(sound, weights, 0), num_wrong


def without_nans(stack: Stack, weights: Array) -> Stack:
    """The stack with zeros for rows of weight 0, where what these hold does harm.

    What is made of such rows is thrown away. But under ``jax_debug_nans`` JAX stops,
    eagerly, at the first nan among it, and derivatives multiply it by zeros. Else that
    costs nothing, and clearing a pass.
    """
    if jax.debug_nans.value:
        clear = [cleared(leaf, weights > 0) for leaf in stack.leaves]
        return stack._replace(leaves=clear)
    return stack._replace(leaves=guarded(stack.leaves, weights > 0))


def checked_weights(weights: Any, num_rows: int, dtype: Any) -> Array:
    """Weights in the dtype of decisions, (B,), ones if not given.

    A weight is at least 0, and at most 1e16, so that rows of up to 1e22 stay finite in
    float32 where they are weighted and added. What is none, say a nan, is -1 where it
    is traced and cannot be an error.

    Raises:
      ValueError: there is not one for every row; what is no weight is not traced.
    """
    if weights is None:
        return jnp.ones(num_rows, dtype)
    given = _as_array(weights)
    if given.shape != (num_rows,):
        raise ValueError(
            f"`weights` must have shape ({num_rows},), one for every row; got "
            f"{given.shape}."
        )
    known = not isinstance(given, jax.core.Tracer)
    if known and getattr(given, "is_fully_addressable", True):
        _check_weights(np.asarray(given, np.float64))
    given = jnp.asarray(given).astype(dtype)
    most = min(_MOST, float(jnp.finfo(dtype).max))
    return jnp.where((given >= 0) & (given <= most), given, -1)


_MOST = 1e16  # counts of more are no longer exact, even in float64


def _as_array(weights: Any) -> Any:
    """Counts above 2**31 are no integers of JAX, but they are floating numbers."""
    try:
        if any(isinstance(x, jax.Array) for x in jax.tree.leaves(weights)):
            return jnp.asarray(weights)
        return np.asarray(weights, np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            "`weights` must be numbers, one for every row, (B,); got a "
            f"{type(weights).__name__} of something else."
        ) from None


def _check_weights(weights: np.ndarray) -> None:
    """Raises where one is no weight."""
    for row in np.flatnonzero(~((weights >= 0) & (weights <= _MOST))):
        raise ValueError(
            f"`weights` must be in [0, {_MOST:g}]; got {weights[row]:g} for row {row}. "
            "Only their ratios count: scale them all. A row that is not there has 0."
        )
