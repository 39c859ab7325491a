"""When updates arrive: a seeded simulation of clients of different speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax import _check
from consensus_optax._typing import Array, Number
from consensus_optax.federated._uniform import sample_clients

Duration = Callable[[Array, Array], Number]


def exponential_duration(key: Array, client: Array) -> Number:
    """Time to train, exponential with mean 1, whoever the client is.

    Args:
      key: random key.
      client: () int32.

    Returns:
      () float32.

    Examples:
      >>> float(exponential_duration(jax.random.key(0), jnp.array(3))) > 0
      True
    """
    del client
    return jax.random.exponential(key)


class Arrivals(NamedTuple):
    """Whose updates make each version of the server, in order of arrival.

    Attributes:
      clients: (num_versions, K) int32.
      versions: (num_versions, K) int32, of the parameters that each started from; the
        age of an update is the number of its row less this.
      times: (num_versions, K) float32, when it came.
    """

    clients: Array
    versions: Array
    times: Array


def arrivals(
    key: Array,
    *,
    num_clients: int,
    concurrency: int,
    num_updates: int,
    num_versions: int,
    duration: Duration = exponential_duration,
) -> Arrivals:
    r"""Simulates clients who train at the same time and are replaced as they finish.

    C of them are busy at any time. Whoever finishes first is the next to arrive, and
    another of those who are not busy, uniformly drawn, begins from the newest
    parameters. After every K arrivals there is a new version.

    Guarantees: a function of the key alone, as how long training takes does not depend
    on what is trained; nobody is busy twice at a time.
    Edge cases: C = K = 1: one after the other, no ages. Durations of nearly 0 or
    infinite are as good as others; ties are broken by place.

    Args:
      key: random key.
      num_clients: how many there are.
      concurrency: C, how many are busy; at most ``num_clients``.
      num_updates: K, as of `buffered`.
      num_versions: how many versions are made.
      duration: ``duration(key, client)``, how long a client takes, () float32.

    Returns:
      The arrivals, of ``num_versions`` times K updates.

    Raises:
      ValueError: a count is out of range.

    Cost: C + N numbers of state; a loop over arrivals, of N random numbers each.

    Examples:
      >>> found = arrivals(jax.random.key(0), num_clients=5, concurrency=3,
      ...                  num_updates=2, num_versions=4)
      >>> found.clients.shape, bool((found.versions <= jnp.arange(4)[:, None]).all())
      ((4, 2), True)
    """
    for name, value in {
        "num_clients": num_clients,
        "concurrency": concurrency,
        "num_updates": num_updates,
        "num_versions": num_versions,
    }.items():
        _check.count(name, value)
    if concurrency > num_clients:
        most = f"at most the number of clients, {num_clients}"
        _check.fail("concurrency", most, concurrency)
    choosing, timing, going_on = jax.random.split(key, 3)
    first = jax.random.permutation(choosing, num_clients)[:concurrency]
    first = first.astype(jnp.int32)
    keys = jax.random.split(timing, concurrency)
    ends = jax.vmap(duration)(keys, first).astype(jnp.float32)

    def event(carry: Any, number: Array) -> tuple[Any, tuple[Array, Array, Array]]:
        busy, began, ends = carry
        place = jnp.argmin(ends)
        now, arrived = ends[place], (busy[place], began[place], ends[place])
        key_of_who, key_of_when = jax.random.split(jax.random.fold_in(going_on, number))
        free = jnp.ones(num_clients).at[busy].set(0)
        free = free.at[busy[place]].set(1)
        draws = jax.random.uniform(key_of_who, (num_clients,))
        client = jnp.argmax(jnp.where(free > 0, draws, -1)).astype(jnp.int32)
        version = ((number + 1) // num_updates).astype(jnp.int32)
        took = duration(key_of_when, client).astype(jnp.float32)
        carry = (
            busy.at[place].set(client),
            began.at[place].set(version),
            ends.at[place].set(now + took),
        )
        return carry, arrived

    start = first, jnp.zeros(concurrency, jnp.int32), ends
    numbers = jnp.arange(num_versions * num_updates)
    _, found = lax.scan(event, start, numbers)
    return Arrivals(*(x.reshape(num_versions, num_updates) for x in found))


def sample_first(
    key: Array,
    counts: Array,
    num_sampled: int,
    *,
    num_asked: int,
    duration: Duration = exponential_duration,
    select: Callable[[Array, Array, int], tuple[Array, Array]] = sample_clients,
) -> tuple[Array, Array]:
    r"""K-of-N rounds: N clients are asked, the K that answer first make the round.

    Durations that do not depend on the client leave the choice what it was; slow
    clients are heard less: with durations of rate :math:`\lambda_i` the first to answer
    is i with probability :math:`\lambda_i / \sum_j \lambda_j` of those asked.

    Args:
      key: random key.
      counts: how much data each client has, ``(num_clients,)``.
      num_sampled: K.
      num_asked: N >= K.
      duration: ``duration(key, client)``, () float32; inf: never answers.
      select: who is asked, such as `sample_by_count`.

    Returns:
      Indices, ``(num_sampled,)`` int32, first answer first, and the weights of
      ``select``; 0 for who never answers.

    Raises:
      ValueError: a count is out of range.

    References: Bonawitz et al., `Towards Federated Learning at Scale
    <https://arxiv.org/abs/1902.01046>`_, 2019, who ask for 1.3 times as many.

    Examples:
      >>> slow = lambda key, client: client.astype(jnp.float32)
      >>> chosen, _ = sample_first(jax.random.key(0), jnp.ones(4), 2, num_asked=4,
      ...                          duration=slow)
      >>> chosen.tolist()
      [0, 1]
    """
    _check.count("num_sampled", num_sampled)
    _check.count("num_asked", num_asked, num_sampled)
    choosing, timing = jax.random.split(key)
    asked, weights = select(choosing, counts, num_asked)
    took = jax.vmap(duration)(jax.random.split(timing, num_asked), asked)
    took = jnp.where(weights > 0, took.astype(jnp.float32), jnp.inf)
    first = jnp.argsort(took, stable=True)[:num_sampled]
    return asked[first], jnp.where(jnp.isfinite(took[first]), weights[first], 0)
