"""Losses and scores against loops, and padding that counts for nothing."""

import jax
import jax.numpy as jnp
import numpy as np

from consensus_optax.tasks import (
    Examples,
    pad_examples,
    stack_problems,
)
from consensus_optax.tasks import example_losses as losses_of
from consensus_optax.tasks import scores as scores_of

example_losses, scores = jax.jit(losses_of), jax.jit(scores_of)


def make(num_examples, size, sizes=((2, 3), (4, 1))):
    rng = np.random.default_rng(0)
    return pad_examples(
        [rng.normal(size=(*s, 2)) for s in sizes],
        [rng.integers(0, 3, s) for s in sizes],
        num_examples=num_examples,
        size=size,
    )


def logits_for(examples):
    weights = np.random.default_rng(1).normal(size=(2, 3)).astype(np.float32)
    return jnp.asarray(examples.inputs @ weights)


def test_losses_are_means_over_scored_cells():
    examples = make(3, (5, 4))
    logits = np.asarray(logits_for(examples), np.float64)
    expected = []
    for picture, targets in zip(logits, examples.targets, strict=True):
        found = [
            np.log(np.exp(picture[cell]).sum()) - picture[cell][targets[cell]]
            for cell in np.argwhere(targets >= 0).tolist()
            for cell in [tuple(cell)]
        ]
        expected.append(np.mean(found) if found else 0.0)
    losses = example_losses(logits_for(examples), examples.targets)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_padding_changes_no_score():
    tight, wide = make(2, (4, 3)), make(5, (9, 7))
    for one, other in zip(
        scores(logits_for(tight), tight), scores(logits_for(wide), wide), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_an_example_is_solved_when_every_cell_is_right():
    targets = np.array([[[0, 1, -1]], [[2, 2, 1]], [[1, -1, -1]]])
    logits = 9.0 * jax.nn.one_hot(jnp.array([[[0, 1, 0]], [[2, 2, 2]], [[1, 0, 0]]]), 3)
    ones = np.ones(targets.shape, np.float32)
    examples = Examples(ones[..., None], ones, targets, np.array([1.0, 1.0, 0.0]))
    found = scores(logits, examples)
    np.testing.assert_allclose(found.solved, 0.5)
    np.testing.assert_allclose(found.accuracy, (1 + 2 / 3) / 2, rtol=1e-6)


def test_labels_and_cells_share_one_code():
    logits = jnp.array([[5.0, 0.0], [5.0, 0.0]])
    ones = jnp.ones((2, 1, 1))
    labels = Examples(ones[..., None], ones, jnp.array([0, 1]), jnp.ones(2))
    cells = labels._replace(targets=labels.targets[:, None, None])
    for one, other in zip(
        scores(logits, labels), scores(logits[:, None, None], cells), strict=True
    ):
        np.testing.assert_allclose(one, other)


def test_stacking_adds_one_axis():
    stacked = stack_problems([make(2, (4, 3))] * 3)
    assert {leaf.shape[:2] for leaf in stacked} == {(3, 2)}
