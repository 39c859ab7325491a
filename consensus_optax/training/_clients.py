"""What clients keep from round to round: state by the number of the client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from consensus_optax import _check
from consensus_optax._rows import verbs
from consensus_optax._rows.finite import finite_rows
from consensus_optax._rows.stack import checked_weights
from consensus_optax._rows.trees import arrays_of, floating_leaves
from consensus_optax.row_transforms._row_memory import are_put, put, taken


class Cohort(NamedTuple):
    """The clients of a round and what they train on.

    Attributes:
      clients: (n,) int32, their numbers; one that is no client's is absent, and of one
        that is there twice the first row is kept. None: nobody keeps anything.
      batches: leaves (n, num_steps, ...), as `federated_round` takes them.
      num_done: (n,) int32, how many local steps each has done before it stopped: who
        has not done all is absent from the round. None: all have.
    """

    clients: jax.Array | None
    batches: Any
    num_done: jax.Array | None = None


class ClientState(NamedTuple):
    r"""What clients keep, with an axis of clients in front, and what is kept of all.

    Attributes:
      last_seen: (num_clients,) int32, the last round that each has counted in; -1:
        none.
      controls: (num_clients, \*shape) SCAFFOLD's control variates, or None.
      control: their mean, the server's, like the parameters, or None.
      personal: (num_clients, \*shape) parameters that never leave a client, or None.
    """

    last_seen: jax.Array
    controls: Any = None
    control: Any = None
    personal: Any = None


class ClientMemory(NamedTuple):
    """What clients are to keep; from `client_memory`.

    Attributes:
      num_clients: of all rounds.
      control_variates: whether they keep control variates.
      personal: which parameters are a client's own, as ``optax.masked`` says it.
    """

    num_clients: int
    control_variates: bool = False
    personal: Any = None

    def init(self, params: Any) -> tuple[Any, ClientState]:
        """The server's part of the parameters, and what every client starts with."""
        params = arrays_of(params)
        shared, own = self.split(params)
        dtype, count = verbs.decision_dtype(params), self.num_clients
        state = ClientState(jnp.full(count, -1, jnp.int32))
        if self.control_variates:
            zeros = lambda *axes: jax.tree.map(
                lambda p: jnp.zeros((*axes, *p.shape), dtype), shared
            )
            state = state._replace(controls=zeros(count), control=zeros())
        if self.personal is not None:
            copies = lambda p: jnp.broadcast_to(p[None], (count, *p.shape)).copy()
            state = state._replace(personal=jax.tree.map(copies, own))
        return shared, state

    def split(self, tree: Any) -> tuple[Any, Any]:
        """A tree like all parameters: what is shared, what is a client's own."""
        if self.personal is None:
            return tree, None
        mask = self.personal(tree) if callable(self.personal) else self.personal
        mask = jax.tree.broadcast(mask, tree)
        gone = optax.MaskedNode()
        shared = jax.tree.map(lambda own, leaf: gone if own else leaf, mask, tree)
        return shared, jax.tree.map(lambda own, leaf: leaf if own else gone, mask, tree)


def client_memory(
    num_clients: int,
    *,
    control_variates: bool = False,
    personal: Any | Callable[[Any], Any] = None,
) -> ClientMemory:
    r"""What clients keep from round to round, for `start` and `federated_round`.

    It is kept by the number of the client: a round takes the entries of those who are
    there and puts new ones in their place. Whoever is absent, of weight 0, breaks down
    on the way, or sends a number that is not finite keeps what it has, bit for bit.

    The last round that a client has counted in is always kept. With
    ``control_variates`` rounds are SCAFFOLD's: local gradients are corrected by

    .. math:: g \leftarrow g - c_i + c, \qquad c_i \leftarrow \text{mean over the local
        steps of the uncorrected } g, \qquad c \leftarrow c + \frac1N \sum_i
        (c_i^{new} - c_i)

    the second of which is the published :math:`c_i - c + (x - y_i) / (K \eta)`, its
    option II, where clients use plain SGD, and goes with any local optimizer.
    With ``personal`` some parameters, such as the last layer, are each client's own
    (FedPer): trained with the others, never sent, and not in the server's parameters,
    which have ``optax.MaskedNode()`` in their place.

    What a compressor has left over is kept by ``co.error_feedback(compressor,
    num_clients)``, ahead of the server's rule: a round tells it who is there.

    Args:
      num_clients: N: so many copies of what is kept.
      control_variates: whether to correct for the clients' drift.
      personal: which parameters are a client's own: a tree of booleans like the
        parameters, or a prefix of it, or a function from the parameters to one.

    Returns:
      A :class:`ClientMemory`.

    Raises:
      ValueError: ``num_clients`` is no count, ``control_variates`` no flag.

    References: Karimireddy et al., `SCAFFOLD: Stochastic Controlled Averaging for
    Federated Learning <https://arxiv.org/abs/1910.06378>`_, 2020; Arivazhagan et al.,
    `Federated Learning with Personalization Layers <https://arxiv.org/abs/1912.00818>`_,
    2019.

    Examples:
      >>> memory = client_memory(3, personal={"body": False, "head": True})
      >>> params = {"body": jnp.ones(2), "head": jnp.ones(4)}
      >>> shared, state = memory.init(params)
      >>> shared["head"], state.personal["head"].shape, state.last_seen.tolist()
      (MaskedNode(), (3, 4), [-1, -1, -1])
    """
    _check.count("num_clients", num_clients)
    _check.flag("control_variates", control_variates)
    return ClientMemory(num_clients, control_variates, personal)


def personalized(params: Any, state: ClientState, client: Any) -> Any:
    """All parameters of one client: the server's, and its own.

    Args:
      params: the server's, ``fit.params``.
      state: what clients keep, ``fit.clients``.
      client: the number of one; or of several, whose own parameters then lead with
        an axis of them.

    Returns:
      A tree like the parameters that training started from.

    Examples:
      >>> memory = client_memory(2, personal={"body": False, "head": True})
      >>> shared, state = memory.init({"body": jnp.ones(2), "head": jnp.ones(3)})
      >>> jax.tree.map(jnp.shape, personalized(shared, state, 1))
      {'body': (2,), 'head': (3,)}
    """
    return joined(params, jax.tree.map(lambda leaf: leaf[client], state.personal))


def joined(shared: Any, own: Any) -> Any:
    """The inverse of `ClientMemory.split`."""
    if own is None:
        return shared
    choose = lambda leaf, mine: mine if is_gone(leaf) else leaf
    return jax.tree.map(choose, shared, own, is_leaf=is_gone)


def parted(tree: Any, shared: Any, personal: Any) -> tuple[Any, Any]:
    """A tree like all parameters: the part that is shared, and what is a client's."""
    if personal is None or tree is None:
        return tree, None

    def pick(of_shared: bool) -> Any:
        keep = lambda leaf, value: (
            optax.MaskedNode() if is_gone(leaf) == of_shared else value
        )
        return jax.tree.map(keep, shared, tree, is_leaf=is_gone)

    return pick(True), pick(False)


def is_gone(leaf: Any) -> bool:
    """Whether there is nothing in the place of a parameter."""
    return isinstance(leaf, optax.MaskedNode)


def entries(state: Any, cohort: Cohort, memory: ClientMemory | None) -> ClientState:
    """What the clients of a round keep, and what is kept of all.

    Raises:
      ValueError: when traced, it is not known who they are, or nothing is kept.
    """
    if memory is None:
        return ClientState(jnp.zeros(0, jnp.int32))
    clients = cohort.clients
    if clients is None:
        raise ValueError(
            "`batches` must be a `training.Cohort`, which says whose they are, where "
            f"clients keep something; got a {type(cohort.batches).__name__}. "
            "`client_batches(..., as_cohort=True)` makes it."
        )
    if not isinstance(state, ClientState):
        raise ValueError(
            "`fit.clients` must be what clients keep; got "
            f"{state!r}. Start with `training.start(params, optimizer, memory)`."
        )
    take = lambda tree: jax.tree.map(lambda leaf: taken(leaf, clients), tree)
    return ClientState(
        take(state.last_seen), take(state.controls), state.control, take(state.personal)
    )


def counts_of(
    cohort: Cohort, weights: Any, num_rows: int, memory: ClientMemory | None
) -> jax.Array:
    """What clients count, (n,): 0 for who is none or has not done all of its steps."""
    counts = checked_weights(weights, num_rows, jnp.dtype("float32"))
    if cohort.num_done is not None:
        num_steps = jax.tree.leaves(cohort.batches)[0].shape[1]
        counts = jnp.where(cohort.num_done >= num_steps, counts, 0)
    if memory is not None and cohort.clients is not None:
        known = (cohort.clients >= 0) & (cohort.clients < memory.num_clients)
        counts = jnp.where(known, counts, 0)
    return counts


def are_finite(tree: Any, num_rows: int) -> jax.Array:
    """Whose entries are all finite, (n,) bool; of no entries, everyone's."""
    leaves = floating_leaves(tree)
    if not leaves:
        return jnp.ones(num_rows, bool)
    return finite_rows(leaves, verbs.decision_dtype(leaves))


def written(
    fit: Any, own: ClientState, new: ClientState, cohort: Cohort, moves: jax.Array
) -> ClientState:
    """What clients keep after a round, with new entries of those who move.

    ``own`` are their old ones.
    """
    state, seen = fit.clients, jnp.full_like(own.last_seen, fit.step)
    place = lambda kept, new, old: put(kept, new, old, moves, cohort.clients)
    of_each = lambda kept, new, old: jax.tree.map(place, kept, new, old)
    control = state.control
    if control is not None:
        count = state.last_seen.shape[0]
        assert cohort.clients is not None  # or nothing would be kept
        are = are_put(
            moves, cohort.clients, count
        )  # else it is not their mean any more

        def add(total: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
            there = are.reshape(-1, *[1] * (new.ndim - 1))
            return total + jnp.where(there, new - old, 0).sum(0) / count

        control = jax.tree.map(add, control, new.controls, own.controls)
    return ClientState(
        of_each(state.last_seen, seen, own.last_seen),
        of_each(state.controls, new.controls, own.controls),
        control,
        of_each(state.personal, new.personal, own.personal),
    )
