"""One data set shared out to many clients, evenly or not: every example once."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from consensus_optax import _check
from consensus_optax.tasks._ragged import side_by_side


class Split(NamedTuple):
    """Which examples each client has.

    Attributes:
      indices: (num_clients, longest) int32, padded with 0 after the end of each.
      counts: (num_clients,) int32, how many are there; 0 where a client has none.
    """

    indices: np.ndarray
    counts: np.ndarray


def even_split(num_examples: int, num_clients: int, *, seed: int = 0) -> Split:
    """Clients alike: examples in random order, in parts as equal as can be.

    Args:
      num_examples: N.
      num_clients: how many clients.
      seed: of the order.

    Returns:
      The split.

    Raises:
      ValueError: an argument is out of range; so in the others.

    Examples:
      >>> even_split(7, 3).counts.tolist()
      [2, 3, 2]
    """
    return _by_shares(num_examples, np.full(_clients(num_clients), 1.0), seed)


def quantity_split(
    num_examples: int, num_clients: int, concentration: float, *, seed: int = 0
) -> Split:
    r"""Clients of unequal size and equal kind: shares are Dirichlet-distributed.

    .. math:: (n_1 \dots n_m) / N \sim \mathrm{Dir}(\alpha, \dots, \alpha)

    Args:
      num_examples: N.
      num_clients: m.
      concentration: alpha > 0; small: a few clients have nearly all.
      seed: of shares and order.

    Returns:
      The split.

    References: Li et al., `Federated Learning on Non-IID Data Silos
    <https://arxiv.org/abs/2102.02079>`_, 2022 (quantity skew).

    Examples:
      >>> split = quantity_split(100, 4, 0.5)
      >>> int(split.counts.sum()), int(split.counts.max()) > 40
      (100, True)
    """
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(_alpha(concentration, num_clients))
    return _by_shares(num_examples, shares, seed + 1)


def dirichlet_split(
    labels: Any, num_clients: int, concentration: float, *, seed: int = 0
) -> Split:
    r"""Clients who see few classes: the examples of a class go to clients by lot.

    .. math:: \text{shares of class } k \sim \mathrm{Dir}(\alpha, \dots, \alpha)

    Args:
      labels: (N,) integers.
      num_clients: m.
      concentration: alpha > 0; 100 is nearly even, 0.1 one or two classes a client.
      seed: of shares and order.

    Returns:
      The split. Clients differ in size, too; some may have nothing.

    References: Hsu et al., `Measuring the Effects of Non-Identical Data Distribution
    <https://arxiv.org/abs/1909.06335>`_, 2019, who draw the classes of each client; by
    class, so that every example is used once: Yurochkin et al., `Bayesian Nonparametric
    Federated Learning <https://arxiv.org/abs/1905.12022>`_, 2019.

    Examples:
      >>> labels = np.repeat([0, 1], 50)
      >>> split = dirichlet_split(labels, 3, 0.3)
      >>> int(split.counts.sum())
      100
    """
    labels, rng = _labels(labels), np.random.default_rng(seed)
    alpha = _alpha(concentration, num_clients)
    parts: list[list[np.ndarray]] = [[] for _ in alpha]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        for part, own in zip(parts, _cut(members, rng.dirichlet(alpha)), strict=True):
            part.append(own)
    return _padded([rng.permutation(np.concatenate(part)) for part in parts])


def shard_split(
    labels: Any, num_clients: int, shards_per_client: int = 2, *, seed: int = 0
) -> Split:
    """Clients of a class or two: sorted by label, cut into shards, shards dealt out.

    Args:
      labels: (N,) integers.
      num_clients: how many clients.
      shards_per_client: shards of each.
      seed: who gets which shard, and the order within a class.

    Returns:
      The split, parts as equal as can be.

    References: McMahan et al., `Communication-Efficient Learning of Deep Networks from
    Decentralized Data <https://arxiv.org/abs/1602.05629>`_, 2017 (Section 3).

    Examples:
      >>> split = shard_split(np.repeat([0, 1, 2, 3], 25), 4, 1)
      >>> sorted((split.indices // 25)[:, 0].tolist()), split.counts.tolist()
      ([0, 1, 2, 3], [25, 25, 25, 25])
    """
    labels, rng = _labels(labels), np.random.default_rng(seed)
    num_shards = _clients(num_clients) * shards_per_client
    _check.count("shards_per_client", shards_per_client)
    if num_shards > len(labels):
        most = f"at most {len(labels) // num_clients}, a shard for every example"
        _check.fail("shards_per_client", most, shards_per_client)
    shuffled = rng.permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    shards = _cut(order, np.full(num_shards, 1.0))
    dealt = rng.permutation(num_shards).reshape(num_clients, shards_per_client)
    return _padded([np.concatenate([shards[i] for i in own]) for own in dealt])


def split_examples(examples: Any, split: Split) -> Any:
    """The data of each client: what `training.client_batches` draws from.

    Args:
      examples: leaves (N, ...).
      split: whose they are.

    Returns:
      Leaves (num_clients, longest, ...); what is after the end of each is zero.

    Raises:
      ValueError: a leaf has not as many examples as were shared out.

    Examples:
      >>> split = even_split(3, 2)
      >>> split_examples(np.array([5, 6, 7]), split).shape, split.counts.tolist()
      ((2, 2), [2, 1])
    """
    num_examples = int(split.counts.sum())
    there = np.arange(split.indices.shape[1])[None, :] < split.counts[:, None]

    def of(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        if leaf.shape[:1] != (num_examples,):
            raise ValueError(
                f"`examples` must have {num_examples} entries on the leading axis of "
                f"every leaf, as were split; got {leaf.shape}"
            )
        mask = there.reshape(*there.shape, *[1] * (leaf.ndim - 1))
        return np.where(mask, leaf[split.indices], np.zeros((), leaf.dtype))

    return jax.tree.map(of, examples)


def shift_features(inputs: Any, strength: float, *, seed: int = 0) -> np.ndarray:
    r"""Clients whose inputs differ in kind: each adds noise of a level of its own.

    .. math:: x + N(0, (\sigma i / (m - 1))^2) \quad i = 0 \dots m - 1

    The noise is a part of the data: an example has the same whenever it is drawn.

    Args:
      inputs: (num_clients, longest, ...) floating, as of `split_examples`.
      strength: sigma >= 0, of the last client.
      seed: of the noise.

    Returns:
      Inputs of the same shape and dtype.

    Raises:
      ValueError: ``strength`` is negative.

    References: Li et al., `Federated Learning on Non-IID Data Silos
    <https://arxiv.org/abs/2102.02079>`_, 2022 (noise-based feature skew).

    Examples:
      >>> shifted = shift_features(np.zeros((3, 1000), np.float32), 2.0)
      >>> [round(float(x), 1) for x in shifted.std(1)]
      [0.0, 1.0, 2.0]
    """
    _check.static_number("strength", strength, 0)
    inputs = np.asarray(inputs)
    levels = strength * np.linspace(0, 1, len(inputs)) if len(inputs) > 1 else [0.0]
    noise = np.random.default_rng(seed).normal(size=inputs.shape)
    scales = np.reshape(levels, (-1, *[1] * (inputs.ndim - 1)))
    return (inputs + scales * noise).astype(inputs.dtype)


def _by_shares(num_examples: int, shares: np.ndarray, seed: int) -> Split:
    _check.count("num_examples", num_examples)
    order = np.random.default_rng(seed).permutation(num_examples)
    return _padded(_cut(order, shares))


def _cut(members: np.ndarray, shares: np.ndarray) -> list[np.ndarray]:
    """Consecutive parts in proportion to shares, all members in one of them."""
    ends = np.cumsum(shares)
    places = np.rint(ends[:-1] / ends[-1] * len(members)).astype(int)
    return np.split(members, places)


def _padded(parts: list[np.ndarray]) -> Split:
    return Split(*side_by_side([part.astype(np.int32) for part in parts]))


def _clients(num_clients: int) -> int:
    _check.count("num_clients", num_clients)
    return num_clients


def _alpha(concentration: float, num_clients: int) -> np.ndarray:
    _check.static_number("concentration", concentration, 0, open_low=True)
    return np.full(_clients(num_clients), float(concentration))


def _labels(labels: Any) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or not labels.size:
        raise ValueError(f"`labels` must have shape (N,), N >= 1; got {labels.shape}")
    return labels
