"""Arguments of a call, arranged by row: what is batched, differentiated, or shared.

Shared arguments reach the loss as they are, as under ``jax.vmap(jax.grad(loss))``: a
``True`` stays a ``True``, and strings, functions and modules pass.
"""

from __future__ import annotations

import functools
import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from consensus_optax import _check
from consensus_optax._gradients.constraints import RowsAxis
from consensus_optax._gradients.names import kind_of, known_as
from consensus_optax._rows.explicit import along_rows, spec_of
from consensus_optax._rows.varying import varying_like
from consensus_optax._typing import Array, AxisName

Argnums = int | Sequence[int]


class Arranged(NamedTuple):
    """Arguments of a call in which row i is index i of a leading axis.

    Attributes:
      args: the arguments.
      in_axes: for each, 0 if it has that axis and None if all rows share it.
      num_rows: B.
      argnums: which of them are differentiated, 0 or above.
      rows_axis: what is known of the axis of rows on a mesh.
    """

    args: tuple[Any, ...]
    in_axes: tuple[int | None, ...]
    num_rows: int
    argnums: int | tuple[int, ...]
    rows_axis: RowsAxis = RowsAxis()

    def take(self, indices: Array) -> Arranged:
        """The rows with these indices."""
        take = lambda leaf: jnp.take(leaf, indices, axis=0)
        args = [
            arg if axis is None else jax.tree.map(take, arg)
            for arg, axis in zip(self.args, self.in_axes, strict=True)
        ]
        return self._replace(args=tuple(args), num_rows=indices.shape[0])

    def varying(self, tree: Any) -> Any:
        """The tree, typed as what is computed from the rows inside ``shard_map``."""
        return varying_like(tree, self._of_rows)

    @property
    def cut(self) -> PartitionSpec:
        """How the axis of rows is cut along explicit mesh axes."""
        return PartitionSpec(spec_of(jax.tree.leaves(self._of_rows)[0])[0])

    @property
    def _of_rows(self) -> list[Any]:
        """The arguments that have the axis."""
        pairs = zip(self.args, self.in_axes, strict=True)
        return [arg for arg, axis in pairs if axis == 0]

    def differentiated(self, args: Sequence[Any]) -> Any:
        """Of a call's arguments the one, or those, that are differentiated."""
        if isinstance(self.argnums, int):
            return args[self.argnums]
        return tuple(args[position] for position in self.argnums)

    def without_shared(
        self, function: Callable[..., Any]
    ) -> tuple[Callable[..., Any], list[int | None], list[Any]]:
        """The function of what may be traced, with the rest in place.

        Returns:
          (function, in_axes, args) of the arguments that have rows or are
          differentiated, whose leaves are arrays or numbers.
        """
        several = several_of(self.argnums)
        traced = [i for i, axis in enumerate(self.in_axes) if axis == 0 or i in several]

        @known_as(function, traced)
        def of_traced(*given: Any) -> Any:
            args = list(self.args)
            for position, arg in zip(traced, given, strict=True):
                args[position] = arg
            return function(*args)

        axes = [self.in_axes[i] for i in traced]
        return of_traced, axes, [self.args[i] for i in traced]


class ForgottenAxis(UserWarning):
    """What is shared by all rows looks as if it had one entry for each."""


def arranger(
    argnums: Argnums,
    batch_argnums: Argnums,
    keep_batch_dim: bool,
    group_size: int,
    prng_argnum: int | None,
    spmd_axis_name: AxisName | None = None,
    size: str = "group_size",
) -> Callable[[Sequence[Any]], Arranged]:
    """Checks the options that say what a row is; returns what makes rows of a call.

    ``size``: what messages call ``group_size``.
    """
    _check.count(size, group_size)
    _check.flag("keep_batch_dim", keep_batch_dim)
    if not keep_batch_dim and group_size > 1:
        _check.fail("keep_batch_dim", "True when `group_size` is above 1", False)
    for name, value in (("argnums", argnums), ("batch_argnums", batch_argnums)):
        checked_argnums(name, value)
    if prng_argnum is not None:
        checked_argnums("prng_argnum", prng_argnum)
    names: tuple[str, ...] = ()
    if spmd_axis_name is not None:
        names = _check.axis_names("spmd_axis_name", spmd_axis_name)
    rows_axis = RowsAxis(group_size if keep_batch_dim else None, names)

    def arrange(args: Sequence[Any]) -> Arranged:
        several = functools.partial(positions, count=len(args))
        batched = several("batch_argnums", batch_argnums)
        differentiated = several("argnums", argnums)
        num_rows = _num_rows(args, batched, group_size, size)
        arranged: list[Any] = list(args)
        in_axes: list[int | None] = [None] * len(args)
        for position in batched:
            in_axes[position] = 0
            if keep_batch_dim:
                group = lambda x: x.reshape(num_rows, group_size, *x.shape[1:])
                arranged[position] = jax.tree.map(group, args[position])
        if prng_argnum is not None:
            (position,) = several("prng_argnum", prng_argnum)
            in_axes[position] = 0
            arranged[position] = _row_keys(position, args[position], num_rows)
        one = not isinstance(argnums, Sequence)
        numbers = differentiated[0] if one else differentiated
        given = Arranged(tuple(arranged), tuple(in_axes), num_rows, numbers, rows_axis)
        for position in differentiated:
            check_differentiable(position, args[position])
            arranged[position] = given.varying(arranged[position])
        shared = [i for i, axis in enumerate(in_axes) if axis is None]
        _warn_of_forgotten(
            {i: args[i] for i in shared if i not in differentiated},
            num_rows,
            num_rows * group_size,
        )
        return given._replace(args=tuple(along_rows(arranged, in_axes)))

    return arrange


def positions(name: str, argnums: Argnums, count: int) -> tuple[int, ...]:
    """Which of ``count`` positional arguments are meant, counted from the first one."""
    found = [number + count * (number < 0) for number in checked_argnums(name, argnums)]
    for number in found:
        if not 0 <= number < count:
            raise ValueError(
                f"`{name}` must name positional arguments of the call; got "
                f"{argnums}, but there are {count}"
            )
    return tuple(found)


def checked_argnums(name: str, argnums: Argnums) -> tuple[int, ...]:
    """Positions as Python integers; those of NumPy are as good."""
    try:
        numbers = tuple(map(operator.index, several_of(argnums)))
    except TypeError:
        numbers = None
    if numbers is None or any(isinstance(x, bool) for x in several_of(argnums)):
        _check.fail(name, "a position, or a sequence of positions", argnums)
    return numbers or ()


def several_of(argnums: Argnums) -> tuple[int, ...]:
    return tuple(argnums) if isinstance(argnums, Sequence) else (argnums,)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array, or the shape of one, that JAX can compute with."""
    dtype = getattr(leaf, "dtype", None)
    numeric = getattr(dtype, "kind", "V") not in "OSUMm"  # objects, strings, dates
    return dtype is not None and hasattr(leaf, "shape") and numeric


def _named_leaves(position: int, arg: Any) -> list[tuple[str, Any]]:
    """Leaves of an argument with what messages call them."""
    flat, _ = jax.tree_util.tree_flatten_with_path(arg)
    name = lambda path: f"argument {position}{jax.tree_util.keystr(path)}"
    return [(name(path), leaf) for path, leaf in flat]


def check_differentiable(position: int, arg: Any) -> None:
    """Raises unless all leaves are floating: numbers, or arrays of them."""
    for name, leaf in _named_leaves(position, arg):
        is_number = is_array(leaf) or isinstance(leaf, float | complex)
        if not is_number or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise ValueError(
                "Every leaf of a differentiated argument must be floating; "
                f"{name} is {kind_of(leaf)}. Hand it over in another argument, that "
                "`argnums` does not name."
            )


def _row_keys(position: int, key: Any, num_rows: int) -> Array:
    """One key for every row, by its index in the whole batch; B keys stay as given."""
    if not is_array(key):
        raise ValueError(
            f"`prng_argnum` must name a random key; argument {position} is "
            f"{kind_of(key)}. Make one by `jax.random.key`."
        )
    single = key.ndim == (0 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 1)
    if not single:
        return key
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_rows))


def _num_rows(
    args: Sequence[Any], batched: Sequence[int], group_size: int, size: str
) -> int:
    """B, after checking that all leaves of the batch arguments agree on it."""
    lengths: dict[int, str] = {}
    for position in batched:
        for name, leaf in _named_leaves(position, args[position]):
            if not is_array(leaf) or not leaf.ndim:
                scalar = is_array(leaf) or isinstance(leaf, bool | int | float)
                raise ValueError(
                    f"Every leaf of the batch must lead with the example axis; {name} "
                    f"is {'a scalar' if scalar else kind_of(leaf)}. Pass it as an "
                    "argument outside `batch_argnums`."
                )
            lengths.setdefault(leaf.shape[0], name)
    if len(lengths) != 1:
        found = ", ".join(f"{name} has {length}" for length, name in lengths.items())
        raise ValueError(
            "All leaves of the batch must have one number of examples; "
            f"{found or 'there are no leaves'}."
        )
    (length,) = lengths
    if length % group_size or not length:
        raise ValueError(
            f"`{size}` must divide the number of examples, at least once; got "
            f"{group_size} for {length}. Pad the batch, and pass `weights` with 0 for "
            "the rows that are padding."
        )
    return length // group_size


def _warn_of_forgotten(shared: dict[int, Any], num_rows: int, length: int) -> None:
    """Warns of labels that every row would see whole, as broadcasting hides it.

    Where all is one row, that is right. A raw key may have as many words as there are
    examples.
    """
    for position, arg in shared.items():
        shapes = [leaf.shape for leaf in jax.tree.leaves(arg) if is_array(leaf)]
        raw_key = getattr(arg, "dtype", None) == jnp.uint32 and shapes == [(2,)]
        leads = all(shape[:1] == (length,) for shape in shapes)
        if num_rows > 1 and shapes and leads and not raw_key:
            warnings.warn(
                f"Argument {position} leads with {length} entries, as many as there "
                "are examples, but every row gets all of them. If they belong to the "
                "examples, name it in `batch_argnums`; if not, pass it by keyword.",
                ForgottenAxis,
                stacklevel=4,
            )
