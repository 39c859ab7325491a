import jax
import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax import attacks

KEY = jax.random.key(0)
HONEST = {
    "kernel": jnp.arange(12.0).reshape(3, 2, 2),
    "bias": jnp.array([1.0, 2.0, 6.0]),
}
EVERY = [
    attacks.sign_flip,
    attacks.inner_product_manipulation,
    attacks.a_little_is_enough,
    attacks.gaussian,
    attacks.mimic,
    attacks.infinite,
]


@pytest.mark.parametrize("attack", EVERY)
def test_attackers_look_like_rows(attack):
    rows = jax.jit(attack, static_argnums=1)(HONEST, 2, KEY)
    assert rows["kernel"].shape == (2, 2, 2)
    assert rows["bias"].shape == (2,)
    assert rows["bias"].dtype == jnp.float32
    joined = attacks.join(HONEST, rows)
    np.testing.assert_array_equal(joined["bias"][:3], HONEST["bias"])
    assert joined["kernel"].shape == (5, 2, 2)
    with pytest.raises(ValueError, match="`num_byzantine` must be at least 1; got 0"):
        attack(HONEST, 0, KEY)


def test_formulas():
    bias = lambda rows: rows["bias"].tolist()
    assert bias(attacks.sign_flip(HONEST, 2)) == [-3, -3]
    assert bias(attacks.sign_flip(HONEST, 2, scale=2)) == [-6, -6]
    own = attacks.sign_flip(HONEST, 4, own=True)
    assert bias(own) == [-1, -2, -6, -1]
    assert bias(attacks.inner_product_manipulation(HONEST, 1)) == [-1.5]
    far = attacks.a_little_is_enough(HONEST, 1, num_deviations=2.0)
    np.testing.assert_allclose(far["bias"], 3 - 2 * np.std([1, 2, 6]), rtol=1e-6)
    assert bias(attacks.mimic(HONEST, 2, index=2)) == [6, 6]
    assert bias(attacks.infinite(HONEST, 1, value=1e30)) == [pytest.approx(1e30)]


def test_noise_has_its_size_and_differs():
    rows = attacks.gaussian(jnp.zeros((4, 10_000)), 2, KEY, scale=3.0)
    assert abs(rows.std() - 3) < 0.1
    assert (rows[0] != rows[1]).all()


def test_standard_deviations_of_a_little():
    """By hand: 50 rows, 12 attackers: 14 supporters, 24 of 38 honest rows short."""
    assert attacks.deviations(50, 12) == pytest.approx(0.336, abs=1e-3)
    assert attacks.deviations(11, 5) == pytest.approx(0.967, abs=1e-3)
    with pytest.raises(ValueError, match="a minority of the 10 rows; got 6"):
        attacks.deviations(10, 6)


def test_labels():
    labels = jnp.array([0, 1, 2])
    assert attacks.label_flip(labels, 3).tolist() == [2, 1, 0]
    np.testing.assert_array_equal(attacks.label_flip(np.array([4]), 10), [5])


def test_narrow_rows_and_traced_strengths():
    """Means and deviations are of float32, whatever the rows' dtype."""
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), HONEST)
    attack = lambda z: attacks.a_little_is_enough(narrow, 2, num_deviations=z)
    rows = jax.jit(attack)(jnp.float32(2.0))
    assert rows["bias"].dtype == jnp.bfloat16
    wanted = 3 - 2 * np.std([1, 2, 6])
    assert float(rows["bias"][0]) == float(jnp.bfloat16(wanted))
