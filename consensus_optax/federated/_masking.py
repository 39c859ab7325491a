"""Secure aggregation: messages that hide what they say until they are summed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax import _check
from consensus_optax._typing import Array, Flag, Marked, Tree
from consensus_optax.federated import _field
from consensus_optax.federated._secret_sharing import (
    random_numbers,
    reconstructed,
    shares_of,
)


class Masked(NamedTuple):
    r"""What there is once all clients have sent.

    The server is sent ``messages`` and ``public_keys``. Column j of both shares is
    client j's, who tells the server of them what it asks for: for each client one of
    the two, never both.

    Attributes:
      messages: (n, \*shape) uint32 leaves.
      public_keys: (n,) uint32.
      key_shares: (n, n) uint32: row i of client i's secret key.
      seed_shares: (n, n) uint32: row i of client i's own seed.
    """

    messages: Tree
    public_keys: Array
    key_shares: Array
    seed_shares: Array


def masked(key: Array, numbers: Tree, *, threshold: int) -> Masked:
    r"""The clients' side: masks that cancel in pairs, and one of each client's own.

    .. math:: y_i = x_i + R(b_i) + \sum_{j > i} R(k_{ij}) - \sum_{j < i} R(k_{ij})
        \bmod 2^{32}

    Every pair agrees on a key :math:`k_{ij}` (Diffie and Hellman: each publishes
    :math:`g^{a_i}`, and :math:`g^{a_i a_j}` is known to both); each also has a seed
    :math:`b_i` of its own. Both secrets, :math:`a_i` and :math:`b_i`, are dealt out in
    shares, t of which tell them. :func:`unmasked` is the server's side.

    Protects, against a server that follows the protocol and whoever sees the messages:
    each is uniform whatever x is, and so is any number of them together, but for the
    sum of those who stay to the end; who stays away after sending is recovered and no
    one's x is seen.

    Does not protect: the sum itself, which of few clients tells much (noise is another
    matter: :func:`consensus_optax.private_sum`); who is there; against a server that
    asks some clients for one secret and others for the other, against t clients who
    collude with it; from clients who send what they like, as nobody can look at single
    updates. And **this is a simulation**: one program knows all secrets, agrees on keys
    in a group of 31 bits and draws masks by JAX's generator, neither of which is
    cryptography. It serves to find out what a protocol like this does to training.

    Args:
      key: random key, of this sum alone: a mask that is used twice hides nothing.
      numbers: x, (n, \*shape) uint32 leaves.
      threshold: t, from 1 to n; above 2 n / 3 for what the paper says of servers that
        lie.

    Returns:
      What is sent and dealt out.

    Raises:
      ValueError: ``threshold`` is out of range, or a leaf is not uint32.

    Cost: n^2 masks of the size of x in the simulation, n for each client; n^2 t
    multiplications for the shares.

    References: Bonawitz et al., `Practical Secure Aggregation for Federated Learning on
    User-Held Data <https://arxiv.org/abs/1611.04482>`_, 2016.

    Examples:
      >>> numbers = jnp.array([[1], [2], [3]], jnp.uint32)
      >>> sent = masked(jax.random.key(0), numbers, threshold=2)
      >>> there = jnp.array([True, False, True])
      >>> total, enough = unmasked(sent, there, threshold=2)
      >>> total.tolist(), bool(enough)
      ([4], True)
    """
    leaves = jax.tree.leaves(numbers)
    count = leaves[0].shape[0]
    for leaf in leaves:
        if leaf.dtype != jnp.uint32 or leaf.shape[:1] != (count,):
            raise ValueError(
                f"`numbers` must be uint32, one row for each of {count} clients; got "
                f"{leaf.dtype} of shape {leaf.shape}"
            )
    _check.count("threshold", threshold)
    if threshold > count:
        _check.fail("threshold", f"at most the number of clients, {count}", threshold)
    keys = jax.random.split(key, 4)
    secrets = random_numbers(keys[0], (count,), _field.PRIME - 2) + 1
    seeds = random_numbers(keys[1], (count,), _field.PRIME)
    public = _field.power(jnp.uint32(_field.GENERATOR), secrets)
    numbered = jnp.arange(count)

    def message(row: Tree, number: Array) -> Tree:
        agreed = _field.power(public, secrets[number])  # (n,), its own is not used
        row = _added(row, seeds[number], jnp.uint32(1))
        signs = _signs(number, numbered)
        return _summed_masks(row, agreed, signs)

    return Masked(
        lax.map(lambda pair: message(*pair), (numbers, numbered)),
        public,
        shares_of(keys[2], secrets, count, threshold),
        shares_of(keys[3], seeds, count, threshold),
    )


def unmasked(sent: Masked, present: Marked, *, threshold: int) -> tuple[Tree, Flag]:
    r"""The server's side: the sum of those who are still there, and of nobody else.

    From t of them it asks the shares of the seeds of those who are there, and of the
    keys of those who are not; what it has no message of, or no share, it does not read.

    Args:
      sent: from :func:`masked`.
      present: (n,) bool, who is there to the end; messages of others are left out.
      threshold: t, as it was dealt out.

    Returns:
      The sum modulo 2**32, leaves of shape, and whether as many as t are there: if not
      it is zero.

    Raises:
      ValueError: ``threshold`` is out of range.

    Cost: a mask for each client, n for each that dropped out.

    Examples:
      >>> numbers = jnp.array([[1], [2]], jnp.uint32)
      >>> sent = masked(jax.random.key(0), numbers, threshold=2)
      >>> unmasked(sent, jnp.array([True, True]), threshold=2)[0].tolist()
      [3]
    """
    count = sent.public_keys.shape[0]
    _check.count("threshold", threshold)
    if threshold > count:
        _check.fail("threshold", f"at most the number of clients, {count}", threshold)
    holders = jnp.argsort(~present, stable=True)[:threshold]
    seeds = reconstructed(sent.seed_shares[:, holders], holders)
    secrets = reconstructed(sent.key_shares[:, holders], holders)
    there = present.astype(jnp.uint32)
    numbered = jnp.arange(count)

    def turn(total: Tree, client: Array) -> tuple[Tree, None]:
        stayed = lambda: _added(
            jax.tree.map(lambda t, y: t + y[client], total, sent.messages),
            seeds[client],
            jnp.uint32(2**32 - 1),
        )

        def dropped() -> Tree:
            # what is left of its pairs: theirs, with their sign, taken off
            agreed = _field.power(sent.public_keys, secrets[client])
            signs = _signs(client, numbered) * there  # minus theirs
            return _summed_masks(total, agreed, signs)

        return lax.cond(present[client], stayed, dropped), None

    zeros = jax.tree.map(lambda y: jnp.zeros(y.shape[1:], jnp.uint32), sent.messages)
    total, _ = lax.scan(turn, zeros, numbered)
    enough = present.sum() >= threshold
    return jax.tree.map(lambda x: jnp.where(enough, x, 0), total), enough


def _signs(number: Array, others: Array) -> Array:
    """1 for those after, -1 modulo 2**32 for those before, 0 for oneself; (n,)."""
    minus = jnp.uint32(2**32 - 1)
    sign = jnp.where(others > number, jnp.uint32(1), minus)
    return jnp.where(others == number, jnp.uint32(0), sign)


def _summed_masks(row: Tree, seeds: Array, signs: Array) -> Tree:
    """A row and the masks of all seeds with these signs; those of 0 are not drawn."""

    def turn(total: Tree, pair: tuple[Array, Array]) -> tuple[Tree, None]:
        seed, sign = pair
        added: Callable[[], Tree] = lambda: _added(total, seed, sign)
        return lax.cond(sign != 0, added, lambda: total), None

    return lax.scan(turn, row, (seeds, signs))[0]


def _added(row: Tree, seed: Array, sign: Array) -> Tree:
    """A row and the mask of a seed, R(seed), times a sign."""
    leaves, treedef = jax.tree.flatten(row)
    own = jax.random.fold_in(jax.random.key(0), seed)
    drawn = [
        leaf
        + sign * jax.random.bits(jax.random.fold_in(own, i), leaf.shape, jnp.uint32)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, drawn)
