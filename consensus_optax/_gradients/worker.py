"""Each worker's own gradient inside ``shard_map``, as one row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from consensus_optax._gradients.arguments import Argnums, several_of, shared_by_all
from consensus_optax._gradients.per_example import (
    per_example_value_and_grad,
    without_value,
)
from consensus_optax._rows.trees import arrays_of
from consensus_optax._typing import AxisName, Tree


def worker_value_and_grad(
    fun: Callable[..., Any],
    axis_name: AxisName,
    argnums: Argnums = 0,
    has_aux: bool = False,
    *,
    batch_argnums: Argnums = 1,
    group_size: int | None = None,
    num_rows: int | None = None,
) -> Callable[..., Any]:
    """Like ``jax.value_and_grad`` on this worker's data alone; the gradient is one row.

    Or a few, with ``num_rows`` or ``group_size``: then it is
    :func:`per_example_value_and_grad` of the worker's own batch.

    Inside ``jax.shard_map`` parameters are the same on all devices, and differentiation
    by such a thing sums the gradients over the devices: every worker's row would be the
    total. Here parameters are first marked as each device's own.

    Args:
      fun: loss of (params, ...), a scalar, or (scalar, aux).
      axis_name: mesh axes along which workers have different data.
      argnums: what to differentiate, as in ``jax.grad``.
      has_aux: whether ``fun`` returns (value, aux).
      batch_argnums: which arguments have the example axis; read with the following two.
      group_size: how many of this worker's examples make one row, None for all.
      num_rows: how many rows this worker has, instead.

    Returns:
      A function of the same arguments that gives (value, rows), or ((value, aux),
      rows): this worker's value, and its gradient with a leading axis of length 1, for
      :func:`sharded`. With ``num_rows`` or ``group_size``: values, aux and rows as of
      :func:`per_example_value_and_grad`, also where there is one row. With
      ``check_vma`` or without.

    Raises:
      ValueError: as :func:`per_example_grad` does.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jax.sharding import PartitionSpec as P
      >>> loss = lambda w, x: jnp.mean(w * x)
      >>> value_and_rows = worker_value_and_grad(loss, "data")
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> run = jax.shard_map(value_and_rows, mesh=mesh, in_specs=(P(), P("data")),
      ...                     out_specs=(P(), P("data")), check_vma=False)
      >>> x = jax.device_put(jnp.array([3., 5.]), jax.NamedSharding(mesh, P("data")))
      >>> value, rows = run(jnp.array(2.), x)
      >>> print(value, rows)
      8.0 [4.]
    """
    if group_size is not None or num_rows is not None:
        return per_example_value_and_grad(
            fun,
            argnums,
            batch_argnums=batch_argnums,
            has_aux=has_aux,
            group_size=1 if group_size is None else group_size,
            num_rows=num_rows,
        )

    def value_and_rows(*args: Any, **kwargs: Any) -> tuple[Any, Tree]:
        given, own = shared_by_all(args, argnums)
        for number in several_of(given.argnums):
            own[number] = lax.pcast(arrays_of(own[number]), axis_name, to="varying")
        inner = jax.value_and_grad(given.of_modules(fun), given.argnums, has_aux)
        value, gradient = inner(*own, **kwargs)
        return value, jax.tree.map(lambda leaf: leaf[None], gradient)

    return value_and_rows


def worker_grad(
    fun: Callable[..., Any],
    axis_name: AxisName,
    argnums: Argnums = 0,
    has_aux: bool = False,
    *,
    batch_argnums: Argnums = 1,
    group_size: int | None = None,
    num_rows: int | None = None,
) -> Callable[..., Any]:
    """Like ``jax.grad`` on this worker's data alone, as one row.

    Args:
      fun: see :func:`worker_value_and_grad`; so are the others.
      axis_name: mesh axes along which workers have different data.
      argnums: what to differentiate.
      has_aux: whether ``fun`` returns (value, aux).
      batch_argnums: which arguments have the example axis.
      group_size: how many of this worker's examples make one row, None for all.
      num_rows: how many rows this worker has, instead.

    Returns:
      A function of the same arguments that gives rows (1, ...), or (rows, aux).

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jax.sharding import PartitionSpec as P
      >>> rows_of = worker_grad(lambda w, x: jnp.mean(w * x), "data")
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> run = jax.shard_map(rows_of, mesh=mesh, in_specs=(P(), P("data")),
      ...                     out_specs=P("data"))
      >>> x = jax.device_put(jnp.array([3., 5.]), jax.NamedSharding(mesh, P("data")))
      >>> run(jnp.array(2.), x).tolist()
      [4.0]
    """
    value_and_rows = worker_value_and_grad(
        fun,
        axis_name,
        argnums,
        has_aux,
        batch_argnums=batch_argnums,
        group_size=group_size,
        num_rows=num_rows,
    )

    return without_value(value_and_rows, has_aux)
