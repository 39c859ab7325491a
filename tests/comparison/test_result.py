"""The statistics against their definitions."""

import numpy as np

from consensus_optax import comparison

VALUES = np.random.default_rng(0).normal(size=(5, 3))


def test_error_is_over_problems_with_seeds_averaged_first():
    found = comparison.estimate(VALUES)
    means = [np.mean(row) for row in VALUES]
    spread = np.sqrt(sum((m - np.mean(means)) ** 2 for m in means) / 4)
    np.testing.assert_allclose(found, (np.mean(means), spread / np.sqrt(5)))


def test_error_is_over_seeds_for_one_problem():
    found, expected = comparison.estimate(VALUES[:1]), VALUES[0]
    np.testing.assert_allclose(found.stderr, expected.std(ddof=1) / np.sqrt(3))
    assert np.isnan(comparison.estimate(VALUES[:1, :1]).stderr)


def test_pairing_removes_what_models_share():
    noise = np.random.default_rng(1).normal(size=(1, 5, 3))
    make = lambda values: comparison.Curves({"test_loss": values}, {}, np.ones(0))
    found = comparison.difference(make(noise + 0.25), make(noise), "test_loss")
    np.testing.assert_allclose(found, (0.25, 0), atol=1e-12)


def test_solved_grids_adds_over_problems():
    solved = np.array([[[0.5, 1.0], [0.0, 1.0]]])  # one evaluation, (K, S) = (2, 2)
    curves = comparison.Curves({"test_solved": solved}, {}, np.ones(0))
    found = comparison.solved_grids(curves, np.array([2, 1]))
    np.testing.assert_allclose(found, (2.0, 1.0))
