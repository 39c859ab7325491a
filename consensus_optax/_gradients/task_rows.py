"""How rows of several losses are computed: all at once, by groups, or in turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._gradients.arguments import (
    Argnums,
    Arranged,
    checked_argnums,
    several_of,
    shared_by_all,
)
from consensus_optax._gradients.contraction import worth
from consensus_optax._gradients.leaves import is_array
from consensus_optax._gradients.names import kind_of, known_as
from consensus_optax._gradients.pullbacks import parts_of_rows
from consensus_optax._gradients.several import put_together
from consensus_optax._rows.explicit import along_rows, joined
from consensus_optax._rows.layers import joined_terms
from consensus_optax._rows.outer_product import (
    OuterProduct,
    is_outer_product,
    materialize,
)
from consensus_optax._rows.sums import each_part, with_held
from consensus_optax._rows.varying import varying_like
from consensus_optax._rows.verbs import decision_dtype
from consensus_optax._typing import Array

Found = tuple[Any, Any, Any]  # losses, aux, rows


def checked_losses(fun: Callable[..., Any], has_aux: bool) -> Callable[..., Any]:
    """The losses of a call, an array (K,) or a dict of scalars, and aux or None."""

    @known_as(fun)
    def losses(*args: Any) -> tuple[Any, Any]:
        returned = fun(*args)
        if has_aux and not (isinstance(returned, tuple) and len(returned) == 2):
            raise ValueError(
                "With `has_aux=True`, `fun` must return a pair (losses, aux); what it "
                f"returned is {kind_of(returned)}."
            )
        values: Any = returned[0] if has_aux else returned
        aux = returned[1] if has_aux else None
        if isinstance(values, Mapping):
            flat, _ = jax.tree_util.tree_flatten_with_path(values)
            for path, leaf in flat:
                _check_loss(f"that at {jax.tree_util.keystr(path)}", leaf, ())
            if not flat:
                raise ValueError(f"{_NEEDED}; the dict has none.")
            return jax.tree.map(jnp.asarray, values), aux
        if getattr(values, "ndim", None) != 1:
            shape = f" {values.shape}" if hasattr(values, "shape") else ""
            raise ValueError(
                f"{_NEEDED}; what `fun` returned is {kind_of(values)}{shape}. A pair "
                "(losses, aux) needs `has_aux=True`; one loss has `jax.grad`, and "
                "`co.per_example_grad`."
            )
        _check_loss("the vector", values, values.shape)
        if not values.shape[0]:
            raise ValueError(f"{_NEEDED}; the vector is empty.")
        return jnp.asarray(values), aux

    return losses


_NEEDED = "Several losses are needed of `fun`, a vector (K,) or a dict of scalars"


def _check_loss(name: str, loss: Any, shape: tuple[int, ...]) -> None:
    """Raises unless this is floating and of this shape."""
    numeric = hasattr(loss, "dtype") or isinstance(loss, bool | int | float | complex)
    if not numeric or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
        raise ValueError(f"Losses must be floating; {name} is {kind_of(loss)}.")
    if jnp.shape(loss) != shape:
        raise ValueError(
            f"{_NEEDED}; {name} is an array {jnp.shape(loss)}. Return its mean over "
            "the batch."
        )


def of_one_call(argnums: Argnums) -> Callable[[Sequence[Any]], Arranged]:
    """What arranges a call whose arguments are those of all rows."""
    checked_argnums("argnums", argnums)

    def arrange(args: Sequence[Any]) -> Arranged:
        given, arranged = shared_by_all(args, argnums)
        numbers = several_of(given.argnums)
        rest = [arg for i, arg in enumerate(args) if i not in numbers]
        data = [leaf for leaf in jax.tree.leaves(rest) if is_array(leaf)]
        for number in numbers:
            arranged[number] = varying_like(arranged[number], data)
        return given._replace(args=tuple(arranged))

    return arrange


def of_all(losses: Callable[..., Any], arranged: Arranged) -> Found:
    """K rows of the losses of the whole batch."""
    return _of_call(losses, arranged, arranged.args, patches=False)


def of_groups(losses: Callable[..., Any], arranged: Arranged) -> Found:
    """Rows of the losses of every group, those of one group together."""
    seen: list[Any] = []

    def of_group(*args: Any) -> Any:
        values, aux, rows = _of_call(losses, arranged, args, patches=True)
        leaves, treedef = jax.tree.flatten(rows, is_leaf=is_outer_product)
        seen[:] = [leaves, treedef]
        return values, aux, list(map(_taken_apart, leaves))

    function, in_axes, args = arranged.without_shared(of_group)
    values, aux, factors = jax.vmap(function, tuple(in_axes))(*args)
    leaves, treedef = seen
    pairs = zip(leaves, factors, strict=True)
    return values, aux, treedef.unflatten([_of_every_group(*pair) for pair in pairs])


def _taken_apart(leaf: Any) -> list[Array]:
    return leaf.held if is_outer_product(leaf) else [leaf]


def _of_every_group(leaf: Any, factors: Sequence[Array]) -> Any:
    """Rows (G K, ...) of a leaf of one group, from its arrays of all groups."""
    if not is_outer_product(leaf):
        return joined(factors[0], 0, 2)
    sides = factors[-1].shape[:2]  # G and K
    whole = [jnp.broadcast_to(x, (*sides, *x.shape[2:])) for x in factors]
    return worth(with_held(leaf, [joined(factor, 0, 2) for factor in whole]))


def in_turn(losses: Callable[..., Any], arranged: Arranged) -> Found:
    """K rows, means of those of microbatches, one after the other.

    Products stay so where the terms of all microbatches are smaller than the rows.
    """
    count = arranged.num_rows
    batched = [i for i, axis in enumerate(arranged.in_axes) if axis == 0]
    whole = along_rows(arranged.args, arranged.in_axes)
    data = [whole[i] for i in batched]
    seen: list[Any] = []

    def of_one(given: Sequence[Any]) -> tuple[Any, list[Any], Any]:
        """What adds up, what is stacked of products, and aux."""
        args = list(whole)
        for i, arg in zip(batched, given, strict=True):
            args[i] = arg
        values, aux, rows = _of_call(losses, arranged, args, patches=False)
        leaves, treedef = jax.tree.flatten(rows, is_leaf=is_outer_product)
        kept = [leaf if _stays(leaf, count) else None for leaf in leaves]
        seen[:] = [kept, treedef]
        pairs = zip(leaves, kept, strict=True)
        added = [None if own is not None else materialize(x) for x, own in pairs]
        return (values, added), [x.held for x in kept if x is not None], aux

    def wide(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(decision_dtype(x)), tree)

    def add(sums: Any, given: Sequence[Any]) -> tuple[Any, Any]:
        found, held, aux = of_one(given)
        return jax.tree.map(jnp.add, sums, wide(found)), (held, aux)

    likes, *_ = jax.eval_shape(of_one, jax.tree.map(lambda x: x[0], data))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, decision_dtype(x)), likes)
    sums, (held, aux) = lax.scan(add, arranged.varying(zeros), data)
    mean = lambda total, like: (total / count).astype(like.dtype)
    values, added = jax.tree.map(mean, sums, likes)
    (kept, treedef), queue = seen, iter(held)
    leaves = [
        array if leaf is None else _mean_of(with_held(leaf, next(queue)), count)
        for leaf, array in zip(kept, added, strict=True)
    ]
    return values, aux, treedef.unflatten(leaves)


def _stays(leaf: Any, count: int) -> bool:
    """Whether terms of so many microbatches are smaller than what they multiply to."""
    return is_outer_product(leaf) and count * sum(x.size for x in leaf.held) < leaf.size


def _mean_of(stacked: Any, count: int) -> Any:
    """The mean of products whose factors lead with the axis of microbatches."""

    def of_part(part: OuterProduct) -> OuterProduct:
        right = part.right.astype(decision_dtype(part.right)) / count
        return joined_terms(dataclasses.replace(part, right=right))

    return each_part(of_part, stacked)


class Pulled(NamedTuple):
    """Losses of one call, and how their gradients come.

    Attributes:
      values: the losses.
      aux: what else the call gave.
      pull: the pullback.
      cotangent: of K numbers to what ``pull`` is applied to.
      ones: K times the number 1.
    """

    values: Any
    aux: Any
    pull: Callable[..., Any]
    cotangent: Callable[[Sequence[Any]], Any]
    ones: list[Array]


def pulled(
    losses: Callable[..., Any], arranged: Arranged, args: Sequence[Any]
) -> Pulled:
    """The forward pass of one call."""
    numbers = several_of(arranged.argnums)

    @known_as(losses, numbers)
    def of_params(*params: Any) -> tuple[Any, Any]:
        given = list(args)
        for number, param in zip(numbers, params, strict=True):
            given[number] = param
        return losses(*given)

    params = [args[number] for number in numbers]
    values, pull, aux = jax.vjp(of_params, *params, has_aux=True)
    if isinstance(values, Mapping):
        scalars, treedef = jax.tree.flatten(values)
        cotangent = lambda ones: treedef.unflatten(ones)
    else:
        scalars = [values[i] for i in range(values.shape[0])]
        cotangent = lambda ones: jnp.stack(list(ones))
    ones = [varying_like(jnp.ones((), x.dtype), x) for x in scalars]
    return Pulled(values, aux, pull, cotangent, ones)


def _of_call(
    losses: Callable[..., Any], arranged: Arranged, args: Sequence[Any], patches: bool
) -> Found:
    """The same of one call."""
    values, aux, pull, cotangent, ones = pulled(losses, arranged, args)
    leaves, structure = parts_of_rows(pull, cotangent, ones, patches)
    rows = [put_together(parts, len(ones), row) for row, parts in leaves]
    gradients = jax.tree.unflatten(structure, rows)
    one = isinstance(arranged.argnums, int)
    return values, aux, gradients[0] if one else tuple(gradients)
