"""Asynchronous rounds: a client trains the parameters that were new when it began."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from consensus_optax import _check
from consensus_optax.federated import Arrivals, buffer_of
from consensus_optax.training._clients import Cohort, are_finite, counts_of
from consensus_optax.training._federated import Draw, local_batches, local_updates
from consensus_optax.training._loop import Fit, Loss, Metrics, Rows, Step, step_on_rows


class LateFit(NamedTuple):
    r"""Where asynchronous training stands.

    Attributes:
      params: the newest.
      opt_state: the server's.
      step: () int32, calls so far.
      past: (max_age + 1, \*shape), the last versions; version v is at v modulo their
        number.
    """

    params: Any
    opt_state: Any
    step: jax.Array
    past: Any


def start_late(
    params: Any, optimizer: optax.GradientTransformation, *, max_age: int
) -> LateFit:
    """The state before the first asynchronous round.

    Args:
      params: the parameters to start from.
      optimizer: the server's, whose reducer is `federated.buffered`.
      max_age: how many versions back a client may have begun.

    Returns:
      The state.

    Raises:
      ValueError: ``max_age`` is negative; no buffer is in the optimizer.

    Examples:
      >>> import consensus_optax as co
      >>> server = optax.chain(co.federated.buffered(co.mean(), 2), optax.sgd(1.0))
      >>> start_late(jnp.zeros(3), server, max_age=4).past.shape
      (5, 3)
    """
    _check.count("max_age", max_age, minimum=0)
    opt_state = optimizer.init(params)
    buffer_of(opt_state)
    copies = lambda leaf: jnp.broadcast_to(leaf, (max_age + 1, *jnp.shape(leaf)))
    past = jax.tree.map(copies, params)
    return LateFit(params, opt_state, jnp.zeros((), jnp.int32), past)


def late_round(
    loss: Loss,
    optimizer: optax.GradientTransformationExtraArgs,
    local_optimizer: optax.GradientTransformation,
    *,
    attack: Callable[[Any, jax.Array], Any] | None = None,
    watch: Sequence[str] = (),
) -> Step:
    r"""Updates arrive one by one or some at a time, each of its own age.

    .. math:: g_i = x_{v_i} - \mathrm{local}_i(x_{v_i}), \qquad
        x_{v + 1} = \mathrm{optimizer}(x_v, \text{buffer of } K \text{ updates})

    The server is ``optax.chain(federated.buffered(rule, K, staleness=...),
    co.skip_if_empty(...))``.

    Guarantees: where every call brings K updates of age 0 it is `federated_round`.
    Ages are of versions that are there: calls that make none, since updates are refused
    or too few, leave them as they are.
    Edge cases: an update that began more than ``max_age`` versions ago has weight 0, as
    has one that is not finite: neither is one of the K.

    Args:
      loss: ``loss(params, batch)``, the mean loss of a batch.
      optimizer: the server's.
      local_optimizer: the clients'.
      attack: as for `federated_round`.
      watch: names of fields of the optimizer's state to report, e.g. ``"mean_age"``.

    Returns:
      ``step(fit, (batches, ages), weights)`` on a `LateFit`, for `train`; ``ages`` (n,)
      int32 is how many versions ago each client began, and the rest as for
      `federated_round`. Of a `Cohort` in the place of ``batches`` the optimizer is told
      ``clients``, for ``co.error_feedback`` ahead of the buffer, and who has not done
      all of its steps has not come.

    Cost: that of `federated_round`, n copies of the parameters for where clients begin,
    and the last versions.

    References: Nguyen et al., `Federated Learning with Buffered Asynchronous
    Aggregation <https://arxiv.org/abs/2106.06639>`_, 2022.

    Examples:
      >>> import consensus_optax as co
      >>> from consensus_optax import federated
      >>> loss = lambda w, target: 0.5 * (w - target) ** 2
      >>> server = optax.chain(federated.buffered(co.mean(), 2), optax.sgd(1.0))
      >>> step = late_round(loss, server, optax.sgd(1.0))
      >>> fit = start_late(jnp.zeros(()), server, max_age=2)
      >>> for number, age in [(4.0, 0), (6.0, 0), (9.0, 1), (9.0, 0)]:
      ...     batch = jnp.array([[number]]), jnp.array([age])
      ...     fit, _ = step(fit, batch, None)
      >>> float(fit.params)  # 5, then two that are to go from 0, and from 5, to 9
      11.5
    """
    local = local_updates(loss, local_optimizer)

    def step(
        fit: LateFit, batch: Any, weights: jax.Array | None
    ) -> tuple[LateFit, Metrics]:
        batches, ages = batch
        cohort = batches if isinstance(batches, Cohort) else Cohort(None, batches)
        num_kept = jax.tree.leaves(fit.past)[0].shape[0]
        version = buffer_of(fit.opt_state).version
        ages = jnp.clip(ages, 0, version)
        versions = version - ages
        began = versions % num_kept
        counts = counts_of(cohort, weights, ages.shape[0], None)
        counts = jnp.where(ages < num_kept, counts, 0)
        told = {} if cohort.clients is None else {"clients": cohort.clients}

        def rows_at(now: Fit, batches: Any, weights: jax.Array | None) -> Rows:
            starts = jax.tree.map(lambda leaf: leaf[began], fit.past)
            alone = lambda leaf: leaf[:, None]
            found = jax.vmap(local)(starts, jax.tree.map(alone, batches))
            losses, rows = jax.tree.map(lambda leaf: leaf[:, 0], found)
            rows = rows if attack is None else attack(rows, now.step)
            sound = jnp.where(are_finite(rows, losses.shape[0]), counts, 0)
            return Rows(losses, rows, weights, sound, extra=told)

        take = step_on_rows(rows_at, optimizer, watch, versions=versions)
        now = Fit(fit.params, fit.opt_state, fit.step)
        now, metrics = take(now, cohort.batches, counts)
        place = buffer_of(now.opt_state).version % num_kept
        past = jax.tree.map(lambda x, p: x.at[place].set(p), fit.past, now.params)
        return LateFit(now.params, now.opt_state, now.step, past), metrics

    return step  # pyrefly: ignore[bad-return]


def late_batches(
    key: jax.Array,
    clients: Any,
    counts: jax.Array,
    draw: Draw,
    arrivals: Arrivals,
    *,
    num_steps: int = 1,
    as_cohort: bool = False,
) -> Callable[[jax.Array], tuple[Any, jax.Array]]:
    """The batches of simulated arrivals, K for each call, for `train`.

    Args:
      key: random key; the number of the call is folded in.
      clients: data with leaves ``(num_clients, ...)``, padded to one shape.
      counts: how much of it is there, ``(num_clients,)``.
      draw: as for `client_batches`.
      arrivals: from `federated.arrivals`.
      num_steps: local steps of each client.
      as_cohort: whether to say who they are, for clients that keep something.

    Returns:
      ``batch_at(number)``: ((batches, ages), weights), the latter the counts; a
      `Cohort` in the place of ``batches``, if asked for. In `arrivals` each call makes
      a version: an age is of these.

    Examples:
      >>> import functools
      >>> from consensus_optax import federated, training
      >>> order = federated.arrivals(jax.random.key(0), num_clients=4, concurrency=3,
      ...                            num_updates=2, num_versions=5)
      >>> draw = functools.partial(training.draw_examples, batch_size=3)
      >>> data, counts = jnp.ones((4, 6)), jnp.array([6, 6, 5, 1])
      >>> batch_at = late_batches(jax.random.key(1), data, counts, draw, order)
      >>> (batches, ages), weights = batch_at(0)
      >>> batches.shape, ages.tolist(), weights.shape
      ((2, 1, 3), [0, 0], (2,))
    """
    counts = jnp.asarray(counts)
    clients = jax.tree.map(jnp.asarray, clients)

    def batch_at(number: jax.Array) -> tuple[Any, jax.Array]:
        chosen = arrivals.clients[number]
        drawing = jax.random.fold_in(key, number)
        batches = local_batches(drawing, clients, counts, draw, chosen, num_steps)
        weights = counts[chosen].astype(jnp.float32)
        batches = Cohort(chosen, batches) if as_cohort else batches
        return (batches, number - arrivals.versions[number]), weights

    return batch_at
