"""Clients of pictures have what the split gave them, shifted if so asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax import comparison, tasks

SPLIT = tasks.Split(np.array([[3, 0, 4], [2, 0, 0], [1, 5, 0]]), np.array([3, 1, 2]))


@pytest.fixture(name="whole")
def _whole():
    """Six pictures of 2 x 2, each of one grey of its own; to test, two."""

    def examples(num):
        greys = np.arange(num, dtype=np.float32)[:, None, None, None]
        inputs = np.broadcast_to(greys, (num, 2, 2, 1)).copy()
        labels = np.arange(num, dtype=np.int32) % 3
        inside, weights = np.ones(inputs.shape[:-1], np.float32), np.ones(num)
        return tasks.stack_problems([tasks.Examples(inputs, inside, labels, weights)])

    more = {"num_rows": 1, "group_size": 1, "unit": "label", "trivial": "grey"}
    return tasks.Task(
        *("greys", ("greys",), examples(6), examples(2)),
        num_classes=3,
        trivial_accuracy=np.array([0.5]),
        **more,
    )


def drawn(task, client):
    draw = jax.vmap(task.draw, (0, None, None))
    keys = jax.random.split(jax.random.key(0), 30)
    return draw(keys, jnp.asarray(task.data)[client], task.counts[client])


def test_batches_are_of_the_client(whole):
    task = comparison.picture_clients(whole, lambda _: SPLIT, batch_size=4, width=2)
    assert task.data.shape == (3, 3)
    for client, own in enumerate(([3, 0, 4], [2], [1, 5])):
        pictures, labels = drawn(task, client)
        assert pictures.shape == (30, 4, 2, 2, 1)
        assert {*np.unique(pictures).tolist()} == {*own}
        np.testing.assert_array_equal(labels, pictures[..., 0, 0, 0].astype(int) % 3)
    assert task.params(0)["first"]["kernel"].shape == (4, 2)


def test_noise_is_of_the_client_and_the_same_whenever_it_is_drawn(whole):
    task = comparison.picture_clients(whole, lambda _: SPLIT, shift=0.1, batch_size=4)
    own = tasks.split_examples(whole.train.inputs[0], SPLIT)
    shifted = tasks.shift_features(own, 0.1)
    for client, count in enumerate(SPLIT.counts):
        pictures, _ = drawn(task, client)
        found = np.unique(pictures.reshape(-1, 4), axis=0)
        np.testing.assert_array_equal(
            found, np.unique(shifted[client, :count].reshape(-1, 4), axis=0)
        )
