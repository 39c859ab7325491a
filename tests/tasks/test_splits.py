"""Splits: every example exactly once, by seed, as uneven as asked for."""

import numpy as np
import pytest

from consensus_optax import tasks

LABELS = np.random.default_rng(0).integers(0, 10, 1437)
SPLITS = {
    "even": lambda seed: tasks.even_split(1437, 20, seed=seed),
    "quantity": lambda seed: tasks.quantity_split(1437, 20, 0.3, seed=seed),
    "Dirichlet": lambda seed: tasks.dirichlet_split(LABELS, 20, 0.1, seed=seed),
    "Dirichlet, extreme": lambda seed: tasks.dirichlet_split(
        LABELS, 20, 1e-3, seed=seed
    ),
    "shards": lambda seed: tasks.shard_split(LABELS, 20, 2, seed=seed),
}


def members(split):
    pairs = zip(split.indices, split.counts, strict=True)
    return [row[:count] for row, count in pairs]


@pytest.mark.parametrize("make", SPLITS.values(), ids=SPLITS)
def test_every_example_once_and_by_seed(make):
    for seed in range(5):
        split = make(seed)
        everyone = np.concatenate(members(split))
        np.testing.assert_array_equal(np.sort(everyone), np.arange(1437))
        assert split.indices.shape == (20, split.counts.max())
        again = make(seed)
        np.testing.assert_array_equal(again.indices, split.indices)
    other = make(5)
    assert other.indices.shape != split.indices.shape or np.any(
        other.indices != split.indices
    )


def classes_of(split):
    return [len(np.unique(LABELS[own])) for own in members(split)]


def test_shapes_of_unevenness():
    even = SPLITS["even"](0)
    assert even.counts.min() >= even.counts.max() - 1
    quantity = SPLITS["quantity"](0)
    assert quantity.counts.max() > 5 * np.median(quantity.counts)
    shards = SPLITS["shards"](0)
    assert shards.counts.min() >= shards.counts.max() - 2  # of each shard one
    # a shard is at most as long as a class, and so of two classes at most
    assert max(classes_of(shards)) <= 4
    # alike in kind where alpha is large, unlike where it is small
    alike = tasks.dirichlet_split(LABELS, 20, 100.0)
    assert min(classes_of(alike)) == 10
    assert np.mean(classes_of(SPLITS["Dirichlet"](0))) < 5


def test_shares_of_a_class_are_dirichlet():
    """Their mean is 1 / m; their variance (m - 1) / (m^2 (m alpha + 1))."""
    clients, alpha = 5, 0.5
    labels = np.zeros(2000, int)
    shares = [
        tasks.dirichlet_split(labels, clients, alpha, seed=seed).counts / 2000
        for seed in range(400)
    ]
    np.testing.assert_allclose(np.mean(shares, 0), 1 / clients, atol=5 * 0.011)
    variance = (clients - 1) / (clients**2 * (clients * alpha + 1))
    # 2000 dependent numbers: a relative error of a tenth is beyond five deviations
    np.testing.assert_allclose(np.var(shares), variance, rtol=0.1)


def test_data_of_clients():
    split = SPLITS["quantity"](1)
    data = {"x": np.arange(1437.0)[:, None] + np.zeros((1, 2)), "y": LABELS}
    clients = tasks.split_examples(data, split)
    for number, own in enumerate(members(split)):
        count = split.counts[number]
        np.testing.assert_array_equal(clients["x"][number, :count, 1], own)
        np.testing.assert_array_equal(clients["y"][number, :count], LABELS[own])
        assert not clients["x"][number, count:].any()
    assert clients["y"].dtype == LABELS.dtype


def test_noise_grows_from_client_to_client():
    inputs = np.ones((5, 400, 3), np.float32)
    shifted = tasks.shift_features(inputs, 2.0)
    assert shifted.dtype == np.float32
    np.testing.assert_array_equal(shifted[0], inputs[0])
    # 1200 normal numbers: a deviation is within 10 % but for once in a million
    np.testing.assert_allclose(shifted[1:].std((1, 2)), np.arange(1, 5) / 2, rtol=0.1)
    np.testing.assert_array_equal(tasks.shift_features(inputs, 2.0), shifted)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`concentration` must be in \(0, inf\]"):
        tasks.dirichlet_split(LABELS, 3, 0.0)
    with pytest.raises(ValueError, match="`num_clients` must be at least 1; got 0"):
        tasks.even_split(10, 0)
    with pytest.raises(ValueError, match=r"`shards_per_client` must be at most 3"):
        tasks.shard_split(np.arange(10), 3, 4)
    with pytest.raises(ValueError, match=r"`labels` must have shape \(N,\)"):
        tasks.shard_split(np.zeros((3, 2)), 3)
    with pytest.raises(ValueError, match="`examples` must have 4 entries"):
        tasks.split_examples(np.zeros(5), tasks.even_split(4, 2))
