import jax
import jax.numpy as jnp
import numpy as np

import consensus_optax as co


def test_rows_become_means_of_their_neighbours():
    rows = jnp.array([[0.0], [1.0], [2.0], [10.0], [11.0]])
    params = jnp.zeros(1)
    seen = co.reducer(co.Columns(lambda stack, weights: stack.max(0)))
    rule = co.after(co.nearest_neighbor_mixing(2), seen)
    # 10 and 11 take 2 along.
    got = jax.jit(rule.update)(rows, rule.init(params), params)[0]
    np.testing.assert_allclose(got, [23 / 3], rtol=1e-6)


def test_neighbours_at_one_distance_share_the_place():
    rows = jnp.array([[-1.0], [1.0], [0.0]])
    params = jnp.zeros(1)
    rule = co.after(co.nearest_neighbor_mixing(1), co.median())
    assert jax.jit(rule.update)(rows, rule.init(params), params)[0] == 0.0


def test_it_helps_krum_against_a_little():
    """The mixed rows are closer to the honest mean than any honest row is."""
    random = np.random.default_rng(1)
    honest = random.normal(size=(8, 200)).astype(np.float32)
    bad = honest.mean(0) - 0.5 * honest.std(0)
    rows = jnp.asarray(np.concatenate([honest, bad[None], bad[None]]))
    params = jnp.zeros(200)
    far = []
    for rule in (co.krum(2), co.after(co.nearest_neighbor_mixing(2), co.krum(2))):
        update = jax.jit(rule.update)(rows, rule.init(params), params)[0]
        far.append(np.linalg.norm(update - honest.mean(0)))
    assert far[1] < 0.7 * far[0]
