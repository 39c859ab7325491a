"""Rows: per-example gradients of an ordinary batch loss."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._gradients.arguments import (
    Argnums,
    Arranged,
    arranger,
)
from consensus_optax._gradients.batch_axes import watched, with_batch_axis
from consensus_optax._gradients.claims import Reduce
from consensus_optax._gradients.contraction import of_all_rows, reduced, unfinished
from consensus_optax._gradients.names import kind_of, known_as
from consensus_optax._rows.explicit import explained
from consensus_optax._typing import AxisName


def per_example_value_and_grad(
    fun: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    batch_argnums: Argnums = 1,
    has_aux: bool = False,
    keep_batch_dim: bool = True,
    group_size: int = 1,
    num_rows: int | None = None,
    prng_argnum: int | None = None,
    materialize: bool = False,
    spmd_axis_name: AxisName | None = None,
) -> Callable[..., Any]:
    """Like :func:`per_example_grad`, with the value of every row.

    Args:
      fun: see :func:`per_example_grad`; so are all other arguments.
      argnums: what to differentiate.
      batch_argnums: which arguments have the example axis.
      has_aux: whether ``fun`` returns (value, aux).
      keep_batch_dim: whether ``fun`` sees a batch axis.
      group_size: how many examples make one row.
      num_rows: how many rows there are, instead.
      prng_argnum: which argument is a random key.
      materialize: whether to multiply all leaves out.
      spmd_axis_name: mesh axes that cut the rows.

    Returns:
      A function of ``fun``'s arguments that gives (values, rows), or ((values, aux),
      rows) with ``has_aux``; values are (B,), one for each row.

    Examples:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2)
      >>> x = jnp.array([[1., 0.], [0., 2.]])
      >>> values, rows = per_example_value_and_grad(loss)(jnp.ones(2), x)
      >>> values.tolist(), rows.tolist()
      ([1.0, 4.0], [[2.0, 0.0], [0.0, 8.0]])
    """
    arrange = arranger(
        argnums,
        batch_argnums,
        keep_batch_dim,
        group_size,
        prng_argnum,
        spmd_axis_name,
        num_rows=num_rows,
    )
    _check.flag("materialize", materialize)

    @explained
    def rows_of(*args: Any, **kwargs: Any) -> Any:
        of_row, arranged = functools.partial(fun, **kwargs), arrange(args)
        value, rows = value_and_rows(of_row, arranged, has_aux, materialize)
        return with_batch_axis(of_row, arranged, has_aux, value), rows

    return rows_of


def per_example_grad(
    fun: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    batch_argnums: Argnums = 1,
    has_aux: bool = False,
    keep_batch_dim: bool = True,
    group_size: int = 1,
    num_rows: int | None = None,
    prng_argnum: int | None = None,
    materialize: bool = False,
    spmd_axis_name: AxisName | None = None,
) -> Callable[..., Any]:
    r"""Gradients of many examples: one row for each, or for each group of them.

    .. math:: g_i = \nabla_\theta\, f(\theta, \text{examples of row } i)

    ``fun(params, batch)`` is an ordinary loss, the mean over a batch; it is called with
    the batches of the rows. The mean of the rows is then the gradient of the batch
    (unless the loss mixes examples: batch normalization does).

    Args:
      fun: loss, a scalar; with ``has_aux`` a pair (loss, aux).
      argnums: argument or arguments to differentiate, as in ``jax.grad``; their leaves
        are floating arrays or numbers. Of a module with leaves that are no numbers
        (functions, flags, strings), as Equinox has them, its floating arrays are
        differentiated, as by ``eqx.filter_grad``; the rest reaches ``fun`` as it is,
        and rows have None there.
      batch_argnums: argument or arguments whose leaves lead with the example axis;
        all others (and keywords) are shared by all rows, and reach ``fun`` as they are:
        flags, strings, functions and modules pass.
      has_aux: whether ``fun`` returns (value, aux); the gradient function then returns
        (rows, aux). A leaf of aux that leads with the examples of the batch does so
        again, (B, ...), whatever a row is; any other, a scalar or statistics, leads
        with an axis of rows. Which is which is told by the shapes of ``fun`` for a
        batch of one example more.
      keep_batch_dim: True: ``fun`` sees batches of ``group_size`` examples; False: one
        example without a batch axis.
      group_size: examples in one row. It changes what rules decide.
      num_rows: rows in all, instead of ``group_size``: each has B / num_rows examples,
        that follow each other. A few rows agree where many single examples do not.
      prng_argnum: argument that is a random key. Row i gets ``fold_in(key, i)``, with i
        counted over the whole batch, so that randomness does not depend on how rows
        are computed; an array of as many keys as rows is used as it is. For randomness
        that does not depend on what a row is either: :func:`example_keys`.
      materialize: True gives arrays only; False may leave outer products.
      spmd_axis_name: mesh axes that cut the rows, as in ``jax.vmap``; needed where the
        loss has a ``shard_map`` over other axes. See below for constraints.

    Returns:
      A function of ``fun``'s arguments that gives rows: a tree like the differentiated
      argument with (B, \*shape) leaves.

    Raises:
      ValueError: a static argument is wrong; when traced, it names no argument, leaves
        of the batch have different lengths, or a length that ``group_size`` or
        ``num_rows`` does not divide, a leaf is none that can be batched or
        differentiated, ``fun`` returns no scalar, or it is closed over its batch: it
        reads nothing of it, or takes one of B examples and of one, but not of two.

    Warns:
      UserWarning: a shared positional argument has as many entries as the batch, labels
        for instance, which broadcasting would hide. By keyword it is meant so.

    Inside ``jax.shard_map``, with ``check_vma`` or without, rows are those of the
    device's own examples, fit for :func:`sharded`, and ``num_rows`` are its own too; i
    is then counted on the device: take :func:`example_keys` with its ``axis_name``.

    On a mesh, with automatic or explicit axes, rows are sharded as the batch is, and
    along other axes as parameters are. On explicit axes parameters sharded along the
    rows' own are gathered first, and ``fun`` must say what JAX cannot decide: its error
    then has a note. On automatic axes a sharding constraint of the loss that names the
    rows' axis, ``P("data", None, "model")`` of a batch of activations, is brought to
    the axis of rows, as ``spmd_axis_name`` or else the batch axis in it tells.

    Cost: that of ``jax.vmap(jax.grad(fun))``.

    Examples:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2)
      >>> x = jnp.array([[1., 0.], [0., 2.], [1., 0.], [1., 0.]])
      >>> per_example_grad(loss, group_size=2)(jnp.ones(2), x).tolist()
      [[1.0, 4.0], [2.0, 0.0]]
      >>> per_example_grad(loss, num_rows=1)(jnp.ones(2), x).tolist()
      [[1.5, 2.0]]
    """
    value_and_grad = per_example_value_and_grad(
        fun,
        argnums,
        batch_argnums=batch_argnums,
        has_aux=has_aux,
        keep_batch_dim=keep_batch_dim,
        group_size=group_size,
        num_rows=num_rows,
        prng_argnum=prng_argnum,
        materialize=materialize,
        spmd_axis_name=spmd_axis_name,
    )

    return without_value(value_and_grad, has_aux)


def without_value(
    value_and_rows: Callable[..., Any], has_aux: bool
) -> Callable[..., Any]:
    """The function that gives rows alone, or (rows, aux)."""

    def rows_of(*args: Any, **kwargs: Any) -> Any:
        value, rows = value_and_rows(*args, **kwargs)
        return (rows, value[1]) if has_aux else rows

    return rows_of


def value_and_rows(
    fun: Callable[..., Any],
    arranged: Arranged,
    has_aux: bool = False,
    materialize: bool = False,
) -> tuple[Any, Any]:
    """Values and gradients of all rows, the latter as outer products if possible."""
    function, in_axes, args = value_and_grad_of_row(fun, arranged, has_aux)
    if materialize:
        return of_all_rows(function, in_axes, watched(fun, arranged))(*args)
    return unfinished(function, in_axes, *args, rows_axis=watched(fun, arranged))


def value_and_reduced(
    fun: Callable[..., Any],
    arranged: Arranged,
    has_aux: bool,
    reduce: Reduce,
    likes: Sequence[Any] | None = None,
) -> tuple[Any, list[Any]]:
    """Values, and leaves of the gradients' tree, reduced inside the backward pass."""
    function, in_axes, args = value_and_grad_of_row(fun, arranged, has_aux)
    axis = watched(fun, arranged)
    return reduced(function, in_axes, args, reduce, likes, rows_axis=axis)


def value_and_grad_of_row(
    fun: Callable[..., Any], arranged: Arranged, has_aux: bool
) -> tuple[Callable[..., Any], list[int | None], list[Any]]:
    """What is mapped over rows, over which axes, and of which arguments."""
    loss = _scalar(arranged.of_modules(fun), has_aux)
    value_and_grad = jax.value_and_grad(loss, arranged.argnums, has_aux)
    return arranged.without_shared(value_and_grad)


def _scalar(fun: Callable[..., Any], has_aux: bool) -> Callable[..., Any]:
    """The loss, which raises where it is not a number."""

    @known_as(fun)
    def loss(*args: Any) -> Any:
        returned = fun(*args)
        if has_aux and not (isinstance(returned, tuple) and len(returned) == 2):
            raise ValueError(
                "With `has_aux=True`, `fun` must return a pair (loss, aux); what it "
                f"returned is {kind_of(returned)}."
            )
        value: Any = returned[0] if has_aux else returned
        if jax.tree.structure(value) != jax.tree.structure(0):
            raise ValueError(
                "A scalar is needed of `fun`, the loss of a row; what it returned is "
                f"{kind_of(value)}. A pair (loss, aux) needs `has_aux=True`, a dict of "
                "several losses `co.task_grad`."
            )
        if jnp.ndim(value):
            raise ValueError(
                "A scalar is needed of `fun`, the loss of a row; got an array "
                f"{jnp.shape(value)}. Return the mean over the batch; for a row of "
                "each of several losses use `co.task_grad`."
            )
        return returned

    return loss
