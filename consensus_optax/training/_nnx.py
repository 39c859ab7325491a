"""Rows of NNX models as ``nnx.value_and_grad`` takes them, with all their state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

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


def nnx_value_and_rows(
    fun: Callable[..., Any],
    *,
    wrt: Any = nnx.Param,
    has_aux: bool = False,
    batch_argnums: Argnums = 1,
    axis_name: AxisName | None = None,
    **options: Any,
) -> Callable[..., Any]:
    r"""Like ``nnx.value_and_grad``, with a row for each example, or for a few.

    ``fun(model, batch)`` calls the model as everywhere in NNX. What the model keeps
    beside the parameters is then changed in place, once for all rows:

    ========================== =====================================================
    state                      of every row, and afterwards
    ========================== =====================================================
    random keys (``nnx.Rngs``) :math:`\mathrm{fold\_in}(\text{key}, i)`, i the index of
                               the row's first example in the batch: dropout masks of
                               its own; keys stay, counts go on as after one call
    floating, such as          each row starts with the same; the mean over the rows,
    ``nnx.BatchStat``          weighted. Rows that are not finite do not count
    integers, flags            as one call leaves them; an error if they depend on the
                               example, as they have no mean
    ========================== =====================================================

    So is what other arguments keep that are ``nnx.Rngs`` or modules, positional or
    named; they are not differentiated.

    Batch normalization in a row sees the examples of the row: use ``num_rows`` a few.
    Running variances are means of those within rows, and so smaller than that of the
    batch by the variance of the rows' means; of single examples they are nothing, and
    so are gradients before them (:func:`consensus_optax.check_per_example` says so).

    Args:
      fun: loss, a scalar: ``fun(model, *args, **kwargs)``; with ``has_aux`` a pair.
      wrt: filter of what is differentiated, as for ``nnx.Optimizer``.
      has_aux: whether ``fun`` returns (value, aux).
      batch_argnums: argument or arguments whose leaves lead with the example axis.
      axis_name: inside ``jax.shard_map`` the mesh axes that cut the batch: i is counted
        over all devices, and state is merged over them.
      **options: ``group_size``, ``num_rows``, ``materialize`` and ``spmd_axis_name`` of
        :func:`consensus_optax.per_example_grad`.

    Returns:
      A function of ``fun``'s arguments, and ``weights`` (R,) that rows have in the mean
      of their states, None for equal ones. It gives (values, rows), or ((values, aux),
      rows), rows a ``nnx.State`` for ``nnx.Optimizer.update(model, rows)``, and changes
      the model.

    Raises:
      ValueError: ``fun`` adds variables to the model (``sow``), an integer of the model
        depends on the example, and as ``per_example_grad``.

    Cost: that of ``per_example_grad``, and R copies of the state that ``fun`` changes.

    Examples:
      >>> import jax.numpy as jnp, optax, consensus_optax as co
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)),
      ...                        nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
      >>> tx = optax.chain(co.sign_consensus(), optax.adam(1e-3))
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> loss = lambda model, batch: (model(batch) ** 2).mean()
      >>> value_and_rows = nnx_value_and_rows(loss, num_rows=2)
      >>> values, rows = value_and_rows(model, jnp.ones((8, 2)))
      >>> _ = optimizer.update(model, rows)
      >>> values.shape, int(model.layers[1].rngs.count[...])
      ((2,), 1)
    """

    def value_and_rows(
        model: nnx.Module, *args: Any, weights: Array | None = None, **kwargs: Any
    ) -> Any:
        called = _Call(fun, wrt, has_aux, batch_argnums, axis_name, options)
        return called(rows_of(options), model, args, kwargs, weights)

    return value_and_rows


def nnx_value_and_reduced_grad(
    fun: Callable[..., Any],
    reducer: Reducer | Sharded,
    *,
    wrt: Any = nnx.Param,
    has_aux: bool = False,
    batch_argnums: Argnums = 1,
    axis_name: AxisName | None = None,
    **options: Any,
) -> Callable[..., Any]:
    """:func:`nnx_value_and_rows`, and a reducer: rows a few at a time, or never held.

    Guarantees: what the model keeps, and what each row draws, is that of
    :func:`nnx_value_and_rows`, however many rows are computed at a time; value, update
    and the reducer's state are those of
    :func:`consensus_optax.value_and_reduced_grad`.

    Args:
      fun: loss, a scalar: ``fun(model, *args, **kwargs)``; with ``has_aux`` a pair.
      reducer: any reducer, or a sharded one.
      wrt: filter of what is differentiated.
      has_aux: whether ``fun`` returns (value, aux).
      batch_argnums: argument or arguments whose leaves lead with the example axis.
      axis_name: inside ``jax.shard_map`` the mesh axes that cut the batch.
      **options: ``group_size``, ``num_rows``, ``microbatch_size``, ``hold_rows`` and
        ``spmd_axis_name`` of :func:`consensus_optax.value_and_reduced_grad`.

    Returns:
      A function of ``fun``'s arguments, and of ``state``, what ``reducer.init(params)``
      or the last call gave, ``weights`` and ``extra``. It gives (value, update, state),
      or ((value, aux), update, state), the update a ``nnx.State`` for an
      ``nnx.Optimizer`` without a reducer, and changes the model.

    Raises:
      ValueError: as both do.

    Examples:
      >>> import jax.numpy as jnp, optax, consensus_optax as co
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)),
      ...                        nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
      >>> optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
      >>> loss = lambda model, batch: (model(batch) ** 2).mean()
      >>> rule = co.sign_consensus()
      >>> reduced = nnx_value_and_reduced_grad(loss, rule, microbatch_size=2)
      >>> state = rule.init(nnx.state(model, nnx.Param))
      >>> value, update, state = reduced(model, jnp.ones((8, 2)), state=state)
      >>> _ = optimizer.update(model, update)
      >>> int(state.num_present), int(model.layers[1].rngs.count[...])
      (8, 1)
    """

    def reduced(
        model: nnx.Module,
        *args: Any,
        state: Any = None,
        weights: Array | None = None,
        extra: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        called = _Call(fun, wrt, has_aux, batch_argnums, axis_name, options)
        engine = reduced_by(reducer, options, state, weights, extra)
        return called(engine, model, args, kwargs, weights)

    return reduced


class _Call(NamedTuple):
    """A loss of a model that keeps something, and how its arguments are meant."""

    fun: Callable[..., Any]
    wrt: Any
    has_aux: bool
    batch_argnums: Argnums
    axis_name: AxisName | None
    options: dict[str, Any]

    def __call__(
        self, engine: Engine, model: nnx.Module, args: Any, kwargs: Any, weights: Any
    ) -> Any:
        """What the engine gives; the model, and others like it, are changed."""
        modules = {i: arg for i, arg in enumerate(args) if _is_node(arg)}
        named = {name: arg for name, arg in kwargs.items() if _is_node(arg)}
        whole = model, modules, named
        graphdef, split, keys, rest = nnx.split(whole, self._moves, nnx.RngKey, ...)
        params = split[_MODEL] if _MODEL in split else nnx.State({})
        leaves, treedef = jax.tree.flatten(rest)
        names = _names(rest)

        def of_row(params: Any, number: Array, *args: Any) -> Any:
            # New variables: a call that changed those of ``model`` would leak tracers.
            own = jax.tree.map(lambda key: _folded(key, number), keys)
            same = jax.tree.map(lambda leaf: leaf, (params, rest))
            state = nnx.State({_MODEL: same[0]})
            called = nnx.merge(graphdef, state, own, same[1])
            given = [called[1].get(i, arg) for i, arg in enumerate(args)]
            returned = self.fun(called[0], *given, **{**kwargs, **called[2]})
            loss, aux = returned if self.has_aux else (returned, None)
            *_, after = nnx.split(called, self._moves, nnx.RngKey, ...)
            left, structure = jax.tree.flatten(after)
            if structure != treedef:
                raise ValueError(
                    "The loss must leave the model with the variables that it has; it "
                    "adds or removes some, as `sow` does. Take them out in the loss, "
                    "by `nnx.capture` or `nnx.pop`, and return them as aux."
                )
            pairs = zip(names, left, leaves, strict=True)
            return loss, ({name: x for name, x, y in pairs if x is not y}, aux)

        found = with_state(
            engine,
            of_row,
            dict(zip(names, leaves, strict=True)),
            params,
            [None if i in modules else arg for i, arg in enumerate(args)],
            weights,
            self.axis_name,
            self.batch_argnums,
            self.options,
            counts=_names(nnx.state(whole, nnx.RngCount)),
        )
        pairs = zip(names, leaves, strict=True)
        merged = [found.state.get(name, leaf) for name, leaf in pairs]
        nnx.update(whole, jax.tree.unflatten(treedef, merged))
        return ((found.value, found.aux) if self.has_aux else found.value), *found.made

    def _moves(self, path: Any, value: Any) -> bool:
        """Whether a variable of all that is given is differentiated: of the model."""
        return path[0] == _MODEL and nnx.filterlib.to_predicate(self.wrt)(
            path[1:], value
        )


_MODEL = 0  # its place beside other modules


def _is_node(arg: Any) -> bool:
    """Whether an argument holds variables of its own, as `nnx.Rngs` do."""
    return isinstance(arg, nnx.Pytree)


def _names(state: Any) -> list[str]:
    """What variables are called: those of the model as there."""
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    own = lambda path: path[1:] if path[0].key == _MODEL else path
    return [jax.tree_util.keystr(own(path)) for path, _ in flat]


def _folded(key: Array, number: Array) -> Array:
    """A key, or each of several, of the row with this number."""
    fold = jax.vmap(jax.random.fold_in, (0, None))
    return fold(key.reshape(-1), number).reshape(key.shape)
