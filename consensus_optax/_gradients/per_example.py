"""Rows: per-example gradients of an ordinary batch loss."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._gradients.contraction import unfinished, with_products
from consensus_optax._rows.explicit import explained, whole_along_rows
from consensus_optax._rows.varying import varying_like
from consensus_optax._typing import Array

Argnums = int | Sequence[int]


def per_example_value_and_grad(
    fun: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    batch_argnums: Argnums = 1,
    has_aux: bool = False,
    keep_batch_dim: bool = True,
    group_size: int = 1,
    prng_argnum: int | None = None,
    materialize: bool = False,
) -> Callable[..., Any]:
    """Like :func:`per_example_grad`, with the value of every row.

    Args:
      fun: see :func:`per_example_grad`; so are all other arguments.
      argnums: what to differentiate.
      batch_argnums: which arguments have the example axis.
      has_aux: whether ``fun`` returns (value, aux).
      keep_batch_dim: whether ``fun`` sees a batch axis.
      group_size: how many examples make one row.
      prng_argnum: which argument is a random key.
      materialize: whether to multiply all leaves out.

    Returns:
      A function of ``fun``'s arguments that gives (values, rows), or ((values, aux),
      rows) with ``has_aux``; values are (B,), every leaf of aux has a leading B.

    Examples:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2)
      >>> x = jnp.array([[1., 0.], [0., 2.]])
      >>> values, rows = per_example_value_and_grad(loss)(jnp.ones(2), x)
      >>> values.tolist(), rows.tolist()
      ([1.0, 4.0], [[2.0, 0.0], [0.0, 8.0]])
    """
    arrange = arranger(argnums, batch_argnums, keep_batch_dim, group_size, prng_argnum)
    _check.flag("materialize", materialize)
    value_and_grad = jax.value_and_grad(fun, argnums, has_aux=has_aux)

    @explained
    def rows_of(*args: Any, **kwargs: Any) -> Any:
        of_row = functools.partial(value_and_grad, **kwargs)
        return value_and_rows(of_row, arrange(args), materialize)

    return rows_of


def per_example_grad(
    fun: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    batch_argnums: Argnums = 1,
    has_aux: bool = False,
    keep_batch_dim: bool = True,
    group_size: int = 1,
    prng_argnum: int | None = None,
    materialize: bool = False,
) -> Callable[..., Any]:
    r"""Gradients of many examples: one row for each group of ``group_size`` examples.

    .. math:: g_i = \nabla_\theta\, f(\theta, \text{examples of row } i)

    ``fun(params, batch)`` is an ordinary loss, the mean over a batch; it is called with
    the batches of the rows. The mean of the rows is then the gradient of the batch
    (unless the loss mixes examples: batch normalization does).

    Args:
      fun: loss, a scalar; with ``has_aux`` a pair (loss, aux).
      argnums: argument or arguments to differentiate, as in ``jax.grad``.
      batch_argnums: argument or arguments whose leaves lead with the example axis;
        all others (and keywords) are shared by all rows.
      has_aux: whether ``fun`` returns (value, aux); the gradient function then returns
        (rows, aux), every leaf of aux with a leading B.
      keep_batch_dim: True: ``fun`` sees batches of ``group_size`` examples; False: one
        example without a batch axis.
      group_size: examples in one row. It changes what rules decide.
      prng_argnum: argument that is a random key. Row i gets ``fold_in(key, i)``, with i
        counted over the whole batch, so that randomness does not depend on how rows
        are computed; an array of B keys is used as it is.
      materialize: True gives arrays only; False may leave outer products.

    Returns:
      A function of ``fun``'s arguments that gives rows: a tree like the differentiated
      argument with (B, \*shape) leaves.

    Raises:
      ValueError: a static argument is wrong; when traced, leaves of the batch have
        different lengths, or a length that ``group_size`` does not divide.

    Inside ``jax.shard_map``, with ``check_vma`` or without, rows are those of the
    device's own examples, fit for :func:`sharded`; i is then counted on the device, so
    fold ``lax.axis_index`` into the key first.

    Cost: that of ``jax.vmap(jax.grad(fun))``.

    Examples:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2)
      >>> x = jnp.array([[1., 0.], [0., 2.], [1., 0.], [1., 0.]])
      >>> per_example_grad(loss, group_size=2)(jnp.ones(2), x).tolist()
      [[1.0, 4.0], [2.0, 0.0]]
    """
    value_and_grad = per_example_value_and_grad(
        fun,
        argnums,
        batch_argnums=batch_argnums,
        has_aux=has_aux,
        keep_batch_dim=keep_batch_dim,
        group_size=group_size,
        prng_argnum=prng_argnum,
        materialize=materialize,
    )

    def rows_of(*args: Any, **kwargs: Any) -> Any:
        value, rows = value_and_grad(*args, **kwargs)
        return (rows, value[1]) if has_aux else rows

    return rows_of


class Arranged(NamedTuple):
    """Arguments of a call in which row i is index i of a leading axis.

    Attributes:
      args: the arguments.
      in_axes: for each, 0 if it has that axis and None if all rows share it.
      num_rows: B.
    """

    args: tuple[Any, ...]
    in_axes: tuple[int | None, ...]
    num_rows: int

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
        pairs = zip(self.args, self.in_axes, strict=True)
        return varying_like(tree, [arg for arg, axis in pairs if axis == 0])


def value_and_rows(
    value_and_grad: Callable[..., Any],
    arranged: Arranged,
    materialize: bool = False,
) -> tuple[Any, Any]:
    """Values and gradients of all rows, the latter as outer products if possible."""
    if materialize:
        all_rows = jax.vmap(with_products(value_and_grad), arranged.in_axes)
        return all_rows(*arranged.args)
    return unfinished(value_and_grad, arranged.in_axes, *arranged.args)


def arranger(
    argnums: Argnums,
    batch_argnums: Argnums,
    keep_batch_dim: bool,
    group_size: int,
    prng_argnum: int | None,
) -> Callable[[Sequence[Any]], Arranged]:
    """Checks the options that say what a row is; returns what makes rows of a call."""
    _check.count("group_size", group_size)
    _check.flag("keep_batch_dim", keep_batch_dim)
    if not keep_batch_dim and group_size > 1:
        _check.fail("keep_batch_dim", "True when `group_size` is above 1", False)
    batched, differentiated = _several(batch_argnums), _several(argnums)

    def arrange(args: Sequence[Any]) -> Arranged:
        num_rows = _num_rows(args, batched, group_size)
        arranged: list[Any] = list(args)
        in_axes: list[int | None] = [None] * len(args)
        for position in batched:
            in_axes[position] = 0
            if keep_batch_dim:
                group = lambda x: x.reshape(num_rows, group_size, *x.shape[1:])
                arranged[position] = jax.tree.map(group, args[position])
        if prng_argnum is not None:
            in_axes[prng_argnum] = 0
            arranged[prng_argnum] = row_keys(args[prng_argnum], num_rows)
        given = Arranged(tuple(arranged), tuple(in_axes), num_rows)
        for position in differentiated:
            arranged[position] = given.varying(arranged[position])
        return given._replace(args=tuple(whole_along_rows(arranged, in_axes)))

    return arrange


def _several(argnums: Argnums) -> tuple[int, ...]:
    return (argnums,) if isinstance(argnums, int) else tuple(argnums)


def row_keys(key: Array, num_rows: int) -> Array:
    """One key for every row, by its index in the whole batch; B keys stay as given."""
    single = key.ndim == (0 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 1)
    if not single:
        return key
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_rows))


def _num_rows(args: Sequence[Any], batched: Sequence[int], group_size: int) -> int:
    """B, after checking that all leaves of the batch arguments agree on it."""
    lengths: dict[int, str] = {}
    for position in batched:
        if position >= len(args):
            raise ValueError(
                f"`batch_argnums` must name positional arguments of the call; got "
                f"{position}, but there are {len(args)}"
            )
        for path, leaf in jax.tree_util.tree_flatten_with_path(args[position])[0]:
            name = f"argument {position}{jax.tree_util.keystr(path)}"
            if not getattr(leaf, "ndim", 0):
                raise ValueError(
                    f"Every leaf of the batch must lead with the example axis; {name} "
                    "is a scalar. Pass it as an argument outside `batch_argnums`."
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
            f"`group_size` must divide the number of examples, at least once; got "
            f"{group_size} for {length}. Pad the batch, and pass `weights` with 0 for "
            "the rows that are padding."
        )
    return length // group_size
