"""Back doors: patches, labels, and that a model learns them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax import attacks


def test_a_share_of_the_pictures_and_their_labels():
    pictures = jnp.full((3, 10, 5, 6, 2), 0.25)
    labels = jnp.broadcast_to(jnp.arange(10) % 4, (3, 10))
    key = jax.random.key(0)
    seen, told = attacks.back_door(pictures, labels, 7, key, share=0.3, size=2)
    assert seen.shape == pictures.shape
    assert told.dtype == labels.dtype
    poisoned = np.asarray(told == 7)
    assert (poisoned.sum(1) == 3).all()
    np.testing.assert_array_equal(told[~poisoned], labels[~poisoned])
    np.testing.assert_array_equal(seen[~poisoned], pictures[~poisoned])
    np.testing.assert_array_equal(seen[poisoned], attacks.trigger(pictures)[poisoned])
    corner = np.zeros((5, 6), bool)
    corner[3:, 4:] = True
    assert (np.asarray(seen[poisoned])[:, corner] == 1).all()
    assert (np.asarray(seen[poisoned])[:, ~corner] == 0.25).all()


@pytest.mark.slow
def test_a_linear_model_learns_the_patch():
    """Half of the data with a patch: others are still told apart, it means class 0."""
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.integers(0, 3, 300))
    means = rng.normal(size=(3, 4, 4, 1))
    pictures = jnp.asarray(means[labels] + 0.1 * rng.normal(size=(300, 4, 4, 1)))
    pictures = pictures.astype(jnp.float32)
    key = jax.random.key(0)
    seen, told = attacks.back_door(pictures, labels, 0, key, share=0.5, value=5.0)
    x = seen.reshape(300, -1)
    targets = jax.nn.one_hot(told, 3)
    w, *_ = jnp.linalg.lstsq(jnp.hstack([x, jnp.ones((300, 1))]), targets)
    predict = lambda p: jnp.argmax(p.reshape(300, -1) @ w[:-1] + w[-1:], 1)
    right = float(jnp.mean(predict(pictures) == labels))
    fooled = float(jnp.mean(predict(attacks.trigger(pictures, value=5.0)) == 0))
    assert right > 0.9
    assert fooled > 0.9


def test_bad_arguments():
    pictures, labels = jnp.zeros((4, 3, 3, 1)), jnp.zeros(4, jnp.int32)
    with pytest.raises(ValueError, match="`key` must be a random key where `share`"):
        attacks.back_door(pictures, labels, 0, share=0.5)
    with pytest.raises(ValueError, match=r"`share` must be in \[0, 1\]; got 2"):
        attacks.back_door(pictures, labels, 0, share=2.0)
    with pytest.raises(ValueError, match=r"`size` must be at most .* 3; got 4"):
        attacks.trigger(pictures, size=4)
