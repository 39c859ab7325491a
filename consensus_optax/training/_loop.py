"""A training loop that stays on the device: one step, and a scan over it."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from consensus_optax import _check
from consensus_optax._gradients.per_example import per_example_value_and_grad
from consensus_optax._rows.stack import check_reduced
from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax.training._clients import ClientMemory

Metrics = dict[str, jax.Array]
Loss = Callable[[Any, Any], jax.Array]
WeightedLoss = Callable[[Any, Any, jax.Array | None], jax.Array]


class Fit(NamedTuple):
    """Where training stands."""

    params: Any
    opt_state: Any
    step: jax.Array  # shape=(), dtype=jnp.int32
    clients: Any = None  # a ClientState, in federated rounds that have one


Step = Callable[[Fit, Any, jax.Array | None], tuple[Fit, Metrics]]


def start(
    params: Any,
    optimizer: optax.GradientTransformation,
    memory: ClientMemory | None = None,
) -> Fit:
    """The state before the first step.

    Args:
      params: the parameters to start from.
      optimizer: what will update them.
      memory: of `client_memory`, what clients keep in federated rounds.

    Returns:
      The state.

    Examples:
      >>> int(start(jnp.zeros(2), optax.adam(1e-3)).step)
      0
    """
    shared, clients = (params, None) if memory is None else memory.init(params)
    return Fit(shared, optimizer.init(shared), jnp.zeros((), jnp.int32), clients)


def row_step(
    loss: Loss,
    optimizer: optax.GradientTransformationExtraArgs,
    *,
    group_size: int = 1,
    num_rows: int | None = None,
    watch: Sequence[str] = (),
) -> Step:
    """A step whose optimizer starts with a reducer of per-example gradients.

    Args:
      loss: ``loss(params, batch)``, the mean loss of a batch.
      optimizer: ``optax.chain(reducer, ...)``.
      group_size: how many examples of the batch make one row.
      num_rows: how many rows a batch has, instead.
      watch: names of fields of the optimizer's state to report if it has them,
        e.g. ``"consensus_ratio"``.

    Returns:
      ``step(fit, batch, weights)``, which returns the next state and the metrics: the
      mean ``loss`` of the rows before the step, and what was watched after it.

    Examples:
      >>> import consensus_optax as co
      >>> optimizer = optax.chain(co.sign_consensus(), optax.sgd(1.0))
      >>> loss = lambda w, batch: (w * batch).mean()
      >>> step = row_step(loss, optimizer, watch=["consensus_ratio"])
      >>> fit = start(jnp.zeros(()), optimizer)
      >>> fit, metrics = step(fit, jnp.array([2.0, 3.0]), None)
      >>> float(fit.params), float(metrics["consensus_ratio"])
      (-2.0, 1.0)
    """
    grad = per_example_value_and_grad(loss, group_size=group_size, num_rows=num_rows)

    def rows_at(fit: Fit, batch: Any, weights: jax.Array | None) -> Rows:
        losses, rows = grad(fit.params, batch)
        return Rows(losses, rows, weights, weights, fit.clients)

    return step_on_rows(rows_at, optimizer, watch)


class Rows(NamedTuple):
    """What a step makes of a batch.

    Attributes:
      losses: (n,) of every row.
      rows: (n, *shape) for every parameter.
      weights: (n,) for the optimizer, or None.
      counts: (n,) what each loss counts, or None.
      clients: what clients keep after it.
      extra: further keywords for the optimizer.
    """

    losses: jax.Array
    rows: Any
    weights: jax.Array | None
    counts: jax.Array | None
    clients: Any = None
    extra: Mapping[str, Any] = MappingProxyType({})


def step_on_rows(
    rows_at: Callable[[Fit, Any, jax.Array | None], Rows],
    optimizer: optax.GradientTransformationExtraArgs,
    watch: Sequence[str],
    **extra: Any,
) -> Step:
    """A step on whatever rows a function makes of the state and a batch.

    Args:
      rows_at: (state, batch, weights) to rows and what is known of them; a rule that
        reads ``values`` is given their losses.
      optimizer: ``optax.chain(reducer, ...)``.
      watch: as for `row_step`.
      **extra: what the optimizer is told besides.

    Returns:
      A step as from `row_step`.

    Raises:
      ValueError: from the step, when traced: no reducer is in the optimizer.
    """

    def step(fit: Fit, batch: Any, weights: jax.Array | None) -> tuple[Fit, Metrics]:
        made = rows_at(fit, batch, weights)
        told = {"weights": made.weights, "values": made.losses, **extra, **made.extra}
        updates, opt_state = optimizer.update(
            made.rows, fit.opt_state, fit.params, **told
        )
        check_reduced(updates, fit.params, every=True)
        metrics = {"loss": _told(made.losses, made.counts)}
        for name in watch:
            value = watched(opt_state, name)
            if value is not None:
                metrics[name] = value
        params = optax.apply_updates(fit.params, updates)
        return Fit(params, opt_state, fit.step + 1, made.clients), metrics

    return step


def mean_step(loss: WeightedLoss, optimizer: optax.GradientTransformation) -> Step:
    """A plain step: the gradient of the mean loss, as everyone computes it.

    Args:
      loss: ``loss(params, batch, weights)``, the weighted mean loss of a batch; plain
        if ``weights`` is None.
      optimizer: any optax optimizer, without a reducer.

    Returns:
      ``step(fit, batch, weights)`` as from `row_step`.

    Examples:
      >>> optimizer = optax.sgd(1.0)
      >>> step = mean_step(lambda w, batch, weights: (w * batch).mean(), optimizer)
      >>> fit, _ = step(start(jnp.zeros(()), optimizer), jnp.array([2.0, 3.0]), None)
      >>> float(fit.params)
      -2.5
    """

    def step(fit: Fit, batch: Any, weights: jax.Array | None) -> tuple[Fit, Metrics]:
        value, grads = jax.value_and_grad(loss)(fit.params, batch, weights)
        updates, opt_state = optimizer.update(grads, fit.opt_state, fit.params)
        params = optax.apply_updates(fit.params, updates)
        return Fit(params, opt_state, fit.step + 1), {"loss": value}

    return step


def train(
    step: Step,
    fit: Fit,
    batch_at: Callable[[jax.Array], tuple[Any, jax.Array | None]],
    num_steps: int,
) -> tuple[Fit, Metrics]:
    """Runs some steps as one scan.

    Args:
      step: from `row_step` or `mean_step`.
      fit: where to start.
      batch_at: the batch and the weights (or None) of the step with this number.
      num_steps: how many steps.

    Returns:
      The state after them, and the metrics with a leading axis ``num_steps``.

    Examples:
      >>> optimizer = optax.sgd(0.5)
      >>> loss = lambda w, batch, weights: ((w - batch) ** 2).mean()
      >>> step = mean_step(loss, optimizer)
      >>> batch_at = lambda number: (jnp.ones(3), None)
      >>> fit, metrics = train(step, start(jnp.zeros(()), optimizer), batch_at, 2)
      >>> float(fit.params), metrics["loss"].tolist()
      (1.0, [1.0, 0.0])
    """

    def body(fit: Fit, _: None) -> tuple[Fit, Metrics]:
        return step(fit, *batch_at(fit.step))

    return jax.lax.scan(body, fit, length=num_steps)


def watched(opt_state: Any, name: str) -> jax.Array | None:
    """A scalar field of an optimizer's state, wherever in the chain it is.

    Args:
      opt_state: state of any optax optimizer.
      name: the field's name.

    Returns:
      The outermost such field in float32, or its mean if it has an entry for each
      leaf; None if there is none.

    Examples:
      >>> import consensus_optax as co
      >>> state = co.sign_consensus().init(jnp.zeros(3))
      >>> watched(state, "consensus_ratio").dtype
      dtype('float32')
      >>> watched(state, "no_such_field") is None
      True
    """
    found = optax.tree.get_all_with_path(opt_state, name)
    if not found:
        return None
    _, value = min(found, key=lambda path_and_value: len(path_and_value[0]))
    return jnp.asarray(value, jnp.float32).mean()


def _told(losses: jax.Array, counts: jax.Array | None) -> jax.Array:
    """The mean loss of rows that count, nan if none does: 0 would look like success."""
    mean = weighted_mean(losses, counts)
    return mean if counts is None else jnp.where(jnp.any(counts > 0), mean, jnp.nan)


def weighted_mean(values: jax.Array, weights: jax.Array | None) -> jax.Array:
    """The mean of some values, of which those of weight 0 are not there.

    Args:
      values: one value for each example, ``(N,)``; it may be nan where absent.
      weights: ``(N,)``, or None for equal weights.

    Returns:
      A scalar, 0 if nothing is there.

    Examples:
      >>> values, weights = jnp.array([1.0, jnp.nan]), jnp.array([1.0, 0.0])
      >>> float(weighted_mean(values, weights))
      1.0
    """
    values = _check.array("values", values, "an array (N,)")
    if weights is None:
        return values.mean()
    weights = _check.array("weights", weights, "an array (N,)")
    total = weights.sum()
    sum_present = jnp.where(weights > 0, values * weights, 0).sum()
    return sum_present / positive_or_one(total)
