"""Arguments of a call, arranged by row: what is batched, differentiated, or shared.

Shared arguments reach the loss as they are, as under ``jax.vmap(jax.grad(loss))``: a
``True`` stays a ``True``, and strings, functions and modules pass.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from consensus_optax import _check
from consensus_optax._gradients.constraints import RowsAxis
from consensus_optax._gradients.examples import (
    check_row_size,
    examples_of_a_row,
    number_of_examples,
    row_keys,
    warn_of_forgotten,
)
from consensus_optax._gradients.leaves import (
    check_differentiable,
    put_together,
    taken_apart,
)
from consensus_optax._gradients.names import known_as
from consensus_optax._rows.explicit import (
    Explicit,
    along_rows,
    in_groups,
    spec_of,
)
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
      batched: which of them are the batch: they, and keys, have the axis of rows.
      num_examples: in the whole batch, however few rows are taken.
      passing: of modules that are differentiated, by position, what is no parameter.
      explicit: how all rows of them lie along explicit mesh axes that are automatic
        meanwhile, but where the loss is traced.
    """

    args: tuple[Any, ...]
    in_axes: tuple[int | None, ...]
    num_rows: int
    argnums: int | tuple[int, ...]
    rows_axis: RowsAxis = RowsAxis()
    batched: tuple[int, ...] = ()
    num_examples: int = 1
    passing: tuple[tuple[int, Any], ...] = ()
    explicit: Explicit = Explicit((), ())

    def take(self, indices: Array) -> Arranged:
        """The rows with these indices."""
        take = lambda leaf: jnp.take(leaf, indices, axis=0)
        args = [
            arg if axis is None else jax.tree.map(take, arg)
            for arg, axis in zip(self.args, self.in_axes, strict=True)
        ]
        return self._replace(args=tuple(args), num_rows=indices.shape[0])

    def turn(self, index: Array, count: int) -> Arranged:
        """The rows index, index + k, ... of so many turns k, which divide B.

        Rows that lie on several devices stay there: nothing is looked up.
        """
        size = self.num_rows // count

        def own(leaf: Array) -> Array:
            apart = leaf.reshape(size, count, *leaf.shape[1:])
            return jax.lax.dynamic_index_in_dim(apart, index, 1, keepdims=False)

        args = [
            arg if axis is None else jax.tree.map(own, arg)
            for arg, axis in zip(self.args, self.in_axes, strict=True)
        ]
        return self._replace(args=tuple(args), num_rows=size)

    def varying(self, tree: Any) -> Any:
        """The tree, typed as what is computed from the rows inside ``shard_map``."""
        return varying_like(tree, self._of_rows)

    @property
    def cut(self) -> PartitionSpec:
        """How the axis of rows is cut along explicit mesh axes."""
        cuts = [spec_of(leaf)[0] for leaf in jax.tree.leaves(self._of_rows)]
        return PartitionSpec(next(filter(None, cuts), None))

    @property
    def _of_rows(self) -> list[Any]:
        """The arguments that have the axis."""
        pairs = zip(self.args, self.in_axes, strict=True)
        return [arg for arg, axis in pairs if axis == 0]

    def differentiated(self, args: Sequence[Any]) -> Any:
        """Of a call's arguments the one, or those, that are differentiated."""
        parameters = lambda position: taken_apart(args[position])[0]
        if isinstance(self.argnums, int):
            return parameters(self.argnums)
        return tuple(map(parameters, self.argnums))

    def without_passing(self, args: Sequence[Any]) -> tuple[Arranged, list[Any]]:
        """Arguments that are differentiated hold nothing else, and it is kept."""
        own = list(args)
        passing: list[tuple[int, Any]] = []
        for position in several_of(self.argnums):
            own[position], rest = taken_apart(args[position])
            passing += [] if rest is None else [(position, rest)]
            check_differentiable(position, own[position])
        return self._replace(passing=tuple(passing)), own

    def of_modules(self, fun: Callable[..., Any]) -> Callable[..., Any]:
        """The function of arguments that are whole again."""
        if not self.passing:
            return fun

        @known_as(fun)
        def of_whole(*args: Any, **kwargs: Any) -> Any:
            whole = list(args)
            for position, rest in self.passing:
                whole[position] = put_together(args[position], rest)
            return fun(*whole, **kwargs)

        return of_whole

    @property
    def traced(self) -> list[int]:
        """Which arguments have the axis of rows or are differentiated."""
        several = several_of(self.argnums)
        return [i for i, axis in enumerate(self.in_axes) if axis == 0 or i in several]

    @property
    def given(self) -> list[Any]:
        """The arguments that are ``traced``."""
        return [self.args[i] for i in self.traced]

    def gathered(self) -> Arranged:
        """The same with what all rows share as they need it along explicit axes."""
        laid = along_rows(self.args, self.in_axes)
        own = {i: self.args[i] for i in self.traced}
        return self._replace(args=tuple(own.get(i, x) for i, x in enumerate(laid)))

    def freed(self, given: Sequence[Any]) -> Arranged:
        """The same once these arguments of theirs lie along automatic axes."""
        lie = Explicit.along_rows(self.args, self.in_axes)
        return self._replace(args=self._with(self.args, given), explicit=lie)

    @property
    def lie(self) -> Explicit:
        """How those that are ``traced`` lie where the loss is, of these rows."""
        if not self.explicit.axes:
            return self.explicit
        specs = self.explicit.of_rows(self.in_axes, self.num_rows)
        return self.explicit._replace(specs=[specs[i] for i in self.traced])

    def _with(self, args: Sequence[Any], given: Sequence[Any]) -> tuple[Any, ...]:
        """Arguments, of which those that are ``traced`` are these."""
        own = dict(zip(self.traced, given, strict=True))
        return tuple(own.get(i, arg) for i, arg in enumerate(args))

    def without_shared(
        self, function: Callable[..., Any]
    ) -> tuple[Callable[..., Any], list[int | None], list[Any]]:
        """The function of what may be traced, with the rest in place.

        Returns:
          (function, in_axes, args) of the arguments that are ``traced``, whose leaves
          are arrays or numbers, and lie as ``jax.vmap`` asks for them.
        """
        traced, laid = self.traced, along_rows(self.args, self.in_axes)

        @known_as(function, traced)
        def of_traced(*given: Any) -> Any:
            return function(*self._with(laid, given))

        axes = [self.in_axes[i] for i in traced]
        return of_traced, axes, [laid[i] for i in traced]


def arranger(
    argnums: Argnums,
    batch_argnums: Argnums,
    keep_batch_dim: bool,
    group_size: int,
    prng_argnum: int | None,
    spmd_axis_name: AxisName | None = None,
    size: str = "group_size",
    num_rows: int | None = None,
) -> Callable[[Sequence[Any]], Arranged]:
    """Checks the options that say what a row is; returns what makes rows of a call.

    ``size``: what messages call ``group_size``. ``num_rows`` takes its place.
    """
    check_row_size(size, group_size, num_rows)
    _check.flag("keep_batch_dim", keep_batch_dim)
    if not keep_batch_dim and (group_size > 1 or num_rows is not None):
        several = "`group_size` is above 1" if num_rows is None else "`num_rows` is set"
        _check.fail("keep_batch_dim", f"True when {several}", False)
    for name, value in (("argnums", argnums), ("batch_argnums", batch_argnums)):
        checked_argnums(name, value)
    if prng_argnum is not None:
        checked_argnums("prng_argnum", prng_argnum)
    names: tuple[str, ...] = ()
    if spmd_axis_name is not None:
        names = _check.axis_names("spmd_axis_name", spmd_axis_name)

    def arrange(args: Sequence[Any]) -> Arranged:
        several = functools.partial(positions, count=len(args))
        batched = several("batch_argnums", batch_argnums)
        differentiated = several("argnums", argnums)
        length = number_of_examples(args, batched)
        own = examples_of_a_row(size, group_size, num_rows, length)
        count = length // own
        arranged: list[Any] = list(args)
        in_axes: list[int | None] = [None] * len(args)
        for position in batched:
            in_axes[position] = 0
            if keep_batch_dim:
                group = lambda x: in_groups(x, count, own)
                arranged[position] = jax.tree.map(group, args[position])
        if prng_argnum is not None:
            (position,) = several("prng_argnum", prng_argnum)
            in_axes[position] = 0
            arranged[position] = row_keys(position, args[position], count)
        one = not isinstance(argnums, Sequence)
        numbers = differentiated[0] if one else differentiated
        axis = RowsAxis(own if keep_batch_dim else None, names)
        given = Arranged(
            tuple(arranged), tuple(in_axes), count, numbers, axis, batched, length
        )
        given, arranged = given.without_passing(arranged)
        for position in differentiated:
            arranged[position] = given.varying(arranged[position])
        shared = [i for i, axis in enumerate(in_axes) if axis is None]
        warn_of_forgotten(
            {i: args[i] for i in shared if i not in differentiated}, count, length
        )
        return given._replace(args=tuple(arranged))

    return arrange


def shared_by_all(args: Sequence[Any], argnums: Argnums) -> tuple[Arranged, list[Any]]:
    """Arguments of one call, and what they are for it: modules are taken apart."""
    numbers = positions("argnums", argnums, len(args))
    own = numbers if isinstance(argnums, Sequence) else numbers[0]
    return Arranged(tuple(args), (None,) * len(args), 1, own).without_passing(args)


def positions(name: str, argnums: Argnums, count: int) -> tuple[int, ...]:
    """Which of ``count`` positional arguments are meant, counted from the first one."""
    found = [number + count * (number < 0) for number in checked_argnums(name, argnums)]
    for number in found:
        if not 0 <= number < count:
            closed_over = (
                ". A loss that is closed over its batch sees all of it in every row: "
                "let the batch be an argument, `def loss(params, batch)`"
            )
            raise ValueError(
                f"`{name}` must name positional arguments of the call; got "
                f"{argnums}, but there are {count}"
                + (closed_over if (name, count) == ("batch_argnums", 1) else "")
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
