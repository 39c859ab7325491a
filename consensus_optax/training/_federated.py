"""Federated rounds: clients are rows, what local training moved is their gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from consensus_optax import _check
from consensus_optax._rows.finite import spoiled
from consensus_optax._rules.roster import UNPROTECTED
from consensus_optax.federated import sample_clients
from consensus_optax.training._clients import (
    ClientMemory,
    Cohort,
    are_finite,
    counts_of,
    entries,
    joined,
    parted,
    written,
)
from consensus_optax.training._local import (
    Trained,
    displaced,
    local_training,
    over_clients,
)
from consensus_optax.training._loop import Fit, Loss, Rows, Step, step_on_rows

Draw = Callable[[jax.Array, Any, jax.Array], Any]
Select = Callable[[jax.Array, jax.Array, int], tuple[jax.Array, jax.Array]]


def federated_round(
    loss: Loss,
    optimizer: optax.GradientTransformationExtraArgs,
    local_optimizer: optax.GradientTransformation,
    *,
    memory: ClientMemory | None = None,
    chunk_size: int | None = None,
    attack: Callable[[Any, jax.Array], Any] | None = None,
    watch: Sequence[str] = (),
) -> Step:
    r"""Federated averaging (FedAvg, FedOpt) with any rule in the place of the mean.

    .. math:: \Delta_i = x - \mathrm{local}_i(x), \qquad
        x \leftarrow \mathrm{optimizer}\big(x, \mathrm{rule}(\Delta_1 \dots \Delta_n;
        w)\big)

    The rows are pseudo-gradients: what the parameters moved in the training of each
    client, with the opposite sign. ``optax.chain(co.mean(), optax.sgd(1.0))`` is
    FedAvg, ``optax.chain(co.mean(), optax.adam(1e-2))`` FedAdam; any other reducer, and
    any optimizer after it, makes the rest.

    Guarantees: with one local step of ``optax.sgd(1.0)`` the rows are the gradients of
    the clients' batches, and the round is that of `row_step`. A client of weight 0, or
    whose training ends in an inf or a nan, is the same as no client, and keeps what it
    has of ``memory`` bit for bit.
    Edge cases: without ``memory`` clients keep nothing from round to round. Each local
    optimizer starts anew. All clients take the same number of steps, as one program
    asks for; unequal data show in ``weights`` alone, whereas the original makes epochs
    of them. A rule of signs knows no scale: its learning rate is not that of the mean.

    Args:
      loss: ``loss(params, batch)``, the mean loss of a batch.
      optimizer: the server's, ``optax.chain(reducer, ...)``.
      local_optimizer: the clients', any optax optimizer without a reducer.
      memory: of `client_memory`, what clients keep from round to round: control
        variates (SCAFFOLD), parameters of their own (FedPer), when they were last
        seen; `start` takes it, too, and ``batches`` is a `Cohort`.
      chunk_size: how many clients train at a time; None: all at once.
      attack: ``attack(rows, step)``, the rows that arrive instead, for simulations;
        ``step`` is the number of the round, to be folded into a random key.
      watch: names of fields of the optimizer's state to report, as in `row_step`.

    Returns:
      ``round(fit, batches, weights)``, a step for `train`. ``batches`` has leaves
      ``(n, num_steps, ...)``: a batch for every local step of every client of the
      round, as `client_batches` draws them; ``weights`` (n,) are the clients' counts,
      or None. Of a `Cohort` the optimizer is told ``clients``, for
      ``co.error_feedback`` and ``co.row_momentum`` ahead of its rule. Metric ``loss``
      is the mean loss, before the first step, of the clients that count.

    Raises:
      ValueError: when traced, the rule is a ``co.private_sum`` and clients keep control
        variates, which it does not protect.

    Cost: n rows, the rule, and ``chunk_size`` of the local optimizer's state and of
    what training takes; of ``memory`` entries of those who are there are read and
    written, however many clients there are.

    References: McMahan et al., `Communication-Efficient Learning of Deep Networks from
    Decentralized Data <https://arxiv.org/abs/1602.05629>`_, 2017; Reddi et al.,
    `Adaptive Federated Optimization <https://arxiv.org/abs/2003.00295>`_, 2020.

    Examples:
      >>> import consensus_optax as co
      >>> from consensus_optax import training
      >>> loss = lambda w, target: 0.5 * (w - target) ** 2
      >>> average = optax.chain(co.mean(), optax.sgd(1.0))
      >>> step = federated_round(loss, average, optax.sgd(0.5))
      >>> batches = jnp.array([[4.0, 4.0], [8.0, 8.0]])  # two steps of two clients
      >>> fit = training.start(jnp.zeros(()), average)
      >>> fit, _ = step(fit, batches, jnp.array([1.0, 3.0]))
      >>> float(fit.params)  # the clients are at 3 and 6
      5.25
    """
    _check_chunk(chunk_size)
    controlled = memory is not None and memory.control_variates
    train = local_training(loss, local_optimizer, keeps_gradient=controlled)

    def rows_at(fit: Fit, batch: Any, weights: jax.Array | None) -> Rows:
        cohort = batch if isinstance(batch, Cohort) else Cohort(None, batch)
        own = entries(fit.clients, cohort, memory)

        def client(batches: Any, controls: Any, personal: Any) -> Trained:
            params, correction = joined(fit.params, personal), None
            if controlled:
                drift = jax.tree.map(jnp.subtract, own.control, controls)
                still = jax.tree.map(jnp.zeros_like, personal)
                correction = joined(drift, still)
            return train(params, batches, correction)

        of_all = over_clients(client, chunk_size)
        trained = of_all(cohort.batches, own.controls, own.personal)
        moved, own_moved = parted(trained.moved, fit.params, own.personal)
        personal = jax.tree.map(displaced, own.personal, own_moved)
        gradient, _ = parted(trained.gradient, fit.params, own.personal)
        new = own._replace(controls=gradient, personal=personal)
        num_rows = trained.loss.shape[0]
        sound = are_finite((gradient, personal), num_rows)
        rows = jax.tree.map(lambda leaf: spoiled(-leaf, sound), moved)
        rows = rows if attack is None else attack(rows, fit.step)
        counts = counts_of(cohort, weights, num_rows, memory)
        moves = (counts > 0) & are_finite(rows, num_rows)
        told = {} if cohort.clients is None else {"clients": cohort.clients}
        told |= {UNPROTECTED: None} if controlled else {}
        return Rows(
            trained.loss,
            rows,
            counts,
            jnp.where(moves, counts, 0),
            written(fit, own, new, cohort, moves) if memory else fit.clients,
            told,
        )

    return step_on_rows(rows_at, optimizer, watch)


def local_updates(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    chunk_size: int | None = None,
) -> Callable[[Any, Any], tuple[jax.Array, Any]]:
    """Local training of many clients from the same parameters: rows for a reducer.

    Pure, and free of any axis name: inside ``shard_map``, with replicated parameters
    and the clients' batches over the devices, each device makes the rows of its own
    clients.

    Args:
      loss: ``loss(params, batch)``, the mean loss of a batch.
      optimizer: any optax optimizer without a reducer; it starts anew in every client.
      chunk_size: how many clients train at a time; None: all at once.

    Returns:
      ``rows(params, batches)`` of leaves ``(n, num_steps, ...)``: the loss of each
      client before its first step, ``(n,)``, and minus what each has moved,
      ``(n, *shape)``, in float32 at least. Moves are summed up by themselves, so
      steps that are tiny against the parameters are not rounded away.

    Examples:
      >>> rows = local_updates(lambda w, x: w * x.mean(), optax.sgd(0.5))
      >>> batches = jnp.array([[[1.0, 3.0]], [[4.0, 4.0]]])  # (2, 1, 2): one step
      >>> losses, moved = rows(jnp.ones(()), batches)
      >>> losses.tolist(), moved.tolist()
      ([2.0, 4.0], [1.0, 2.0])
    """
    _check_chunk(chunk_size)
    train = local_training(loss, optimizer)

    def rows(params: Any, batches: Any) -> tuple[jax.Array, Any]:
        client = lambda batches: train(params, batches, None)
        trained = over_clients(client, chunk_size)(batches)
        return trained.loss, jax.tree.map(jnp.negative, trained.moved)

    return rows


def client_batches(
    key: jax.Array,
    clients: Any,
    counts: jax.Array,
    draw: Draw,
    *,
    num_sampled: int,
    num_steps: int = 1,
    select: Select = sample_clients,
    as_cohort: bool = False,
) -> Callable[[jax.Array], tuple[Any, jax.Array]]:
    """The clients and the local batches of every round, for `train`.

    Args:
      key: random key; the number of the round is folded in.
      clients: data with leaves ``(num_clients, ...)``, padded to one shape.
      counts: how much of it is there, ``(num_clients,)``; 0: no such client.
      draw: ``draw(key, data, count)``, a batch from the data of one client, such as
        `draw_examples` or ``tasks.draw_windows`` with their sizes set.
      num_sampled: clients of a round.
      num_steps: local steps of each.
      select: ``select(key, counts, num_sampled)``, their indices and weights: one of
        `consensus_optax.federated`, with its options set.
      as_cohort: whether to say who they are, for clients that keep something.

    Returns:
      ``batch_at(number)``, the batches of that round, ``(num_sampled, num_steps,
      ...)``, or a `Cohort` with them, and the clients' weights: their counts, if
      ``select`` says nothing else.

    Examples:
      >>> import functools
      >>> data, counts = jnp.arange(12.0).reshape(4, 3), jnp.array([3, 1, 2, 3])
      >>> draw = functools.partial(draw_examples, batch_size=2)
      >>> batch_at = client_batches(jax.random.key(0), data, counts, draw,
      ...                           num_sampled=3, num_steps=5)
      >>> batches, weights = batch_at(0)
      >>> batches.shape, weights.shape
      ((3, 5, 2), (3,))
    """
    _check.count("num_steps", num_steps)
    counts = jnp.asarray(counts)
    clients = jax.tree.map(jnp.asarray, clients)

    def batch_at(number: jax.Array) -> tuple[Any, jax.Array]:
        choosing, drawing = jax.random.split(jax.random.fold_in(key, number))
        chosen, weights = select(choosing, counts, num_sampled)
        batches = local_batches(drawing, clients, counts, draw, chosen, num_steps)
        return Cohort(chosen, batches) if as_cohort else batches, weights

    return batch_at


def local_batches(
    key: jax.Array,
    clients: Any,
    counts: jax.Array,
    draw: Draw,
    chosen: jax.Array,
    num_steps: int,
) -> Any:
    """A batch for every local step of some clients, leaves (n, num_steps, ...).

    Args:
      key: random key of the round.
      clients: data of all, leaves (num_clients, ...).
      counts: (num_clients,) how much of it is there.
      draw: a batch of one client's data.
      chosen: (n,) indices.
      num_steps: how many batches for each.
    """
    data = jax.tree.map(lambda leaf: leaf[chosen], clients)
    keys = jax.random.split(key, (chosen.shape[0], num_steps))
    steps = jax.vmap(draw, (0, None, None))
    return jax.vmap(steps)(keys, data, counts[chosen])


def draw_examples(
    key: jax.Array, data: Any, count: jax.Array, *, batch_size: int
) -> Any:
    """Examples of one client, drawn with replacement.

    Args:
      key: random key.
      data: leaves ``(N, ...)``, of which the first ``count`` are there.
      count: () int32.
      batch_size: how many to draw.

    Returns:
      Leaves ``(batch_size, ...)``.

    Examples:
      >>> draw_examples(jax.random.key(0), jnp.array([3., 0.]), 1, batch_size=2)
      Array([3., 3.], dtype=float32)
    """
    _check.count("batch_size", batch_size)
    places = jax.random.randint(key, (batch_size,), 0, jnp.maximum(count, 1))
    return jax.tree.map(lambda leaf: leaf[places], data)


def _check_chunk(chunk_size: Any) -> None:
    if chunk_size is not None:
        _check.count("chunk_size", chunk_size)
