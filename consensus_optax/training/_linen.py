"""Rows of linen models with collections that change and several random streams."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from consensus_optax import _check
from consensus_optax._gradients.arguments import Argnums
from consensus_optax._running.reducer import Reducer
from consensus_optax._typing import Array, AxisName
from consensus_optax.engines.mesh.aggregator import Sharded
from consensus_optax.training._state_of_rows import (
    Engine,
    reduced_by,
    rows_of,
    with_state,
)


def linen_value_and_rows(
    fun: Callable[..., Any],
    *,
    has_aux: bool = False,
    batch_argnums: Argnums = 1,
    axis_name: AxisName | None = None,
    **options: Any,
) -> Callable[..., Any]:
    r"""Rows of a loss of linen variables: ``mutable=`` collections, ``rngs`` and all.

    ``fun(variables, batch)`` returns the loss, and what ``apply`` with ``mutable=``
    returns beside the outputs. Every row gets the same variables, and keys of its own,
    :math:`\mathrm{fold\_in}(\text{key}, i)` with i the index of its first example.

    Collections that ``variables`` has are merged: floating leaves (``batch_stats``) are
    averaged over the rows, of those that are finite; other leaves are as one call
    leaves them, and may not depend on the example. Collections that it lacks
    (``intermediates``) come with an axis of examples or of rows, as aux does. What
    batch normalization does in rows: :func:`nnx_value_and_rows`. Nothing in it is
    linen's: the state of ``hk.transform_with_state`` is a collection too.

    Args:
      fun: ``fun(variables, *args)`` returns (loss, updates), with ``has_aux`` (loss,
        (updates, aux)); it gets ``rngs`` by keyword, if there are any.
      has_aux: whether there is aux.
      batch_argnums: argument or arguments whose leaves lead with the example axis.
      axis_name: inside ``jax.shard_map`` the mesh axes that cut the batch: i is counted
        over all devices, and state is merged over them.
      **options: ``group_size``, ``num_rows``, ``materialize`` and ``spmd_axis_name`` of
        :func:`consensus_optax.per_example_grad`.

    Returns:
      A function of ``fun``'s arguments; of ``rngs``, a dict of keys; and of ``weights``
      (R,) that rows have in the mean of their states, None for equal ones. It gives
      ((values, updates), rows), or ((values, updates, aux), rows): rows are of
      ``variables["params"]``, updates one for all.

    Raises:
      ValueError: ``variables`` have no ``"params"``, ``updates`` is no dict, a leaf of
        it is no number with a mean and depends on the example, and as
        ``per_example_grad``.

    Cost: that of ``per_example_grad``, and R copies of ``updates``.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import linen as nn
      >>> model, x = nn.BatchNorm(momentum=0.5), jnp.arange(8.0).reshape(4, 2)
      >>> def loss(variables, x):
      ...     y, updates = model.apply(variables, x, use_running_average=False,
      ...                              mutable=["batch_stats"])
      ...     return (y**2).mean(), updates
      >>> variables = model.init(jax.random.key(0), x, use_running_average=True)
      >>> value_and_rows = linen_value_and_rows(loss, num_rows=2)
      >>> (values, updates), rows = value_and_rows(variables, x)
      >>> rows["scale"].shape, updates["batch_stats"]["mean"].tolist()
      ((2, 2), [1.5, 2.0])
    """

    def value_and_rows(
        variables: Mapping[str, Any],
        *args: Any,
        rngs: Mapping[str, Array] | None = None,
        weights: Array | None = None,
        **kwargs: Any,
    ) -> Any:
        called = _Call(fun, has_aux, batch_argnums, axis_name, options)
        return called(rows_of(options), variables, args, kwargs, rngs, weights)

    return value_and_rows


def linen_value_and_reduced_grad(
    fun: Callable[..., Any],
    reducer: Reducer | Sharded,
    *,
    has_aux: bool = False,
    batch_argnums: Argnums = 1,
    axis_name: AxisName | None = None,
    **options: Any,
) -> Callable[..., Any]:
    """:func:`linen_value_and_rows`, and a reducer: rows a few at a time, or never held.

    Guarantees: collections, and what each row draws, are those of
    :func:`linen_value_and_rows`, however many rows are computed at a time; value,
    update and the reducer's state are those of
    :func:`consensus_optax.value_and_reduced_grad`.

    Args:
      fun: see :func:`linen_value_and_rows`.
      reducer: any reducer, or a sharded one.
      has_aux: whether there is aux.
      batch_argnums: argument or arguments whose leaves lead with the example axis.
      axis_name: inside ``jax.shard_map`` the mesh axes that cut the batch.
      **options: ``group_size``, ``num_rows``, ``microbatch_size``, ``hold_rows`` and
        ``spmd_axis_name`` of :func:`consensus_optax.value_and_reduced_grad`.

    Returns:
      A function of ``fun``'s arguments; of ``rngs``, a dict of keys; and of ``state``,
      what ``reducer.init(params)`` or the last call gave, ``weights`` and ``extra``. It
      gives ((value, updates), update, state), or ((value, updates, aux), update,
      state): ``updates`` are the collections, ``update`` is like
      ``variables["params"]``.

    Raises:
      ValueError: as both do.

    Examples:
      >>> import jax.numpy as jnp, consensus_optax as co
      >>> from flax import linen as nn
      >>> model, x = nn.BatchNorm(momentum=0.5), jnp.arange(8.0).reshape(4, 2)
      >>> def loss(variables, x):
      ...     y, updates = model.apply(variables, x, use_running_average=False,
      ...                              mutable=["batch_stats"])
      ...     return (y**2).mean(), updates
      >>> variables = model.init(jax.random.key(0), x, use_running_average=True)
      >>> rule = co.median()
      >>> reduced = linen_value_and_reduced_grad(
      ...     loss, rule, num_rows=2, microbatch_size=1)
      >>> (value, updates), update, state = reduced(
      ...     variables, x, state=rule.init(variables["params"]))
      >>> update["scale"].shape, updates["batch_stats"]["mean"].tolist()
      ((2,), [1.5, 2.0])
    """

    def reduced(
        variables: Mapping[str, Any],
        *args: Any,
        rngs: Mapping[str, Array] | None = None,
        state: Any = None,
        weights: Array | None = None,
        extra: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        called = _Call(fun, has_aux, batch_argnums, axis_name, options)
        engine = reduced_by(reducer, options, state, weights, extra)
        return called(engine, variables, args, kwargs, rngs, weights)

    return reduced


class _Call(NamedTuple):
    """A loss of variables, and how its arguments are meant."""

    fun: Callable[..., Any]
    has_aux: bool
    batch_argnums: Argnums
    axis_name: AxisName | None
    options: dict[str, Any]

    def __call__(
        self,
        engine: Engine,
        variables: Mapping[str, Any],
        args: Any,
        kwargs: Any,
        rngs: Mapping[str, Array] | None,
        weights: Any,
    ) -> Any:
        """What the engine gives, and the collections."""
        if not isinstance(variables, Mapping) or "params" not in variables:
            found = list(variables) if isinstance(variables, Mapping) else variables
            _check.fail("variables", 'a dict with "params", as of `init`', found)
        rest = {name: variables[name] for name in variables if name != "params"}

        def of_row(params: Any, number: Array, *args: Any) -> Any:
            own: dict[str, Any] = dict(kwargs)
            if rngs is not None:
                own["rngs"] = _folded(rngs, number)
            returned = self.fun({"params": params, **rest}, *args, **own)
            several = isinstance(returned, tuple) and len(returned) == 2
            left, aux = (None, None) if not several else (returned[1], None)
            if self.has_aux and isinstance(left, tuple) and len(left) == 2:
                left, aux = left
            if not isinstance(left, Mapping):
                wanted = "(loss, (updates, aux))" if self.has_aux else "(loss, updates)"
                raise ValueError(
                    f"`fun` must return {wanted}, with updates the dict that `apply` "
                    f"with `mutable=` gives; what it returned has none. A loss without "
                    "them has `co.per_example_value_and_grad`."
                )
            return returned[0], (dict(left), aux)

        found = with_state(
            engine,
            of_row,
            rest,
            variables["params"],
            args,
            weights,
            self.axis_name,
            self.batch_argnums,
            self.options,
        )
        aux = (found.aux,) if self.has_aux else ()
        return (found.value, found.state, *aux), *found.made


def _folded(rngs: Mapping[str, Array], number: Array) -> dict[str, Array]:
    return {name: jax.random.fold_in(key, number) for name, key in rngs.items()}
