"""Thin products: exact where they can be, alike of arrays and of factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from consensus_optax import compressors
from tests._selected import cases, in_ci

KEY = jax.random.key(3)
B, T, M, N = 3, 5, 9, 7
RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def shared():
    left, right = normal(1, T, M), normal(B, T, N)
    return co.OuterProduct(left, right, row_shape=(M, N))


LEAVES = {
    "dense": co.OuterProduct(normal(B, T, M), normal(B, T, N), row_shape=(M, N)),
    "wide": co.OuterProduct(normal(B, T, N), normal(B, T, M), row_shape=(N, M)),
    "look-up": co.OuterProduct(
        jnp.asarray(RNG.integers(-1, M + 1, (B, T))), normal(B, T, N), row_shape=(M, N)
    ),
    "shared": shared(),
    "moved": co.OuterProduct(
        normal(B, T, M),
        normal(B, T, N),
        row_shape=(M, N),
        steps=(("transpose", (1, 0)), ("reshape", (N, 3, 3))),
    ),
}


@in_ci
@pytest.mark.parametrize("name", LEAVES)
def test_factored_rows_are_the_matrices_that_they_stand_for(name):
    leaf, code = LEAVES[name], compressors.low_rank(2, KEY)
    keys = jax.random.split(KEY, B)
    found = code.factor(leaf, keys)
    assert co.is_outer_product(found)
    assert found.shape == leaf.shape
    assert found.sides[0] == 2
    _, m, n = leaf.sides
    plain = leaf.materialize()
    if name == "moved":
        plain = plain.reshape(B, n, m).swapaxes(1, 2)
    each = lambda x, key: code.decompress(code.compress(x, key), (m, n), key)
    wanted = jax.vmap(each)(plain.reshape(B, m, n), keys)
    if name == "moved":
        wanted = wanted.swapaxes(1, 2)
    # float32: sums of M terms, twice, of numbers of order 5
    np.testing.assert_allclose(
        found.materialize().reshape(-1), wanted.reshape(-1), atol=1e-4
    )


@in_ci
def test_layers_are_compressed_one_by_one():
    leaf = co.OuterProduct(normal(B, 2, T, M), normal(B, 2, T, N), row_shape=(2, M, N))
    code = compressors.low_rank(2, KEY)
    found = code.factor(leaf, jax.random.split(KEY, B))
    assert found.left.shape == (B, 2, 2, M)
    rest = np.asarray(leaf.materialize() - found.materialize())
    thin = np.asarray(found.materialize())
    # a projection: what is left is orthogonal to what is sent, layer by layer
    inner = (rest * thin).sum((2, 3))
    np.testing.assert_allclose(inner, 0, atol=1e-3)


@pytest.mark.parametrize("rank", cases([1, 3], 1))
def test_matrices_of_the_rank_are_exact(rank):
    matrix = normal(M, rank) @ normal(rank, N)
    code = compressors.low_rank(rank, KEY)
    found = code.decompress(code.compress(matrix, KEY), (M, N), KEY)
    np.testing.assert_allclose(found, matrix, atol=1e-4)


@in_ci
def test_more_iterations_come_near_the_best():
    u, _, v = np.linalg.svd(RNG.normal(size=(M, N)), full_matrices=False)
    values = 2.0 ** -np.arange(7)
    matrix = jnp.asarray((u * values) @ v, jnp.float32)
    best = (values[2:] ** 2).sum()
    errors = []
    for turns in (1, 8):
        code = compressors.low_rank(2, KEY, num_iterations=turns)
        found = code.decompress(code.compress(matrix, KEY), (M, N), KEY)
        errors.append(float(((found - matrix) ** 2).sum()))
    assert best * (1 - 1e-4) <= errors[1] <= best * 1.001 < errors[0]


@in_ci
def test_a_second_iteration_is_worth_more_than_the_last_factor():
    """Of one row with error feedback, whose last message took its directions away."""
    rng = np.random.default_rng(0)
    true, x = rng.normal(size=(24, 16)), rng.normal(size=(200, 24))
    x = x * np.geomspace(1, 0.1, 24)
    y = x @ true + rng.normal(size=(200, 16))
    batches = [rng.choice(200, 32) for _ in range(120)]

    def lost(send):
        """The mean share of a message that is not sent, by descent."""
        w, error, shares = np.zeros((24, 16)), np.zeros((24, 16)), []
        for step, idx in enumerate(batches):
            due = x[idx].T @ (x[idx] @ w - y[idx]) / 32 + error
            sent = send(due, step)
            error, w = due - sent, w - 0.1 * sent
            shares.append((error**2).sum() / (due**2).sum())
        return np.mean(shares[20:])

    def ours(num_iterations):
        code = compressors.low_rank(2, KEY, num_iterations=num_iterations)
        made = jax.jit(
            lambda due, key: code.decompress(code.compress(due, key), due.shape, key)
        )
        fresh = lambda step: jax.random.fold_in(KEY, step)
        return lambda due, step: np.asarray(
            made(jnp.asarray(due, jnp.float32), fresh(step))
        )

    last = [rng.normal(size=(16, 2))]

    def warm(due, _):
        """The published start, kept by the row."""
        left = np.linalg.qr(due @ last[0])[0]
        last[0] = due.T @ left
        return left @ last[0].T

    from_anew, from_last = lost(ours(1)), lost(warm)
    assert 0.95 < from_anew / from_last < 1.05
    assert lost(ours(2)) < 0.9 * from_last


@in_ci
def test_what_is_small_stays_as_it_is():
    rows = {"bias": jnp.ones((2, 5)), "thin": jnp.ones((2, 9, 2))}
    few = co.OuterProduct(normal(2, 1, M), normal(2, 1, N), row_shape=(M, N))
    params = jax.tree.map(lambda x: jnp.zeros(x.shape[1:]), rows)
    rows, params = {**rows, "few": few}, {**params, "few": jnp.zeros((M, N))}
    code = co.compressed(compressors.low_rank(2, KEY))
    found, _ = code.update(rows, code.init(params), params)
    np.testing.assert_array_equal(found["bias"], rows["bias"])
    np.testing.assert_array_equal(found["thin"], rows["thin"])
    np.testing.assert_array_equal(found["few"].materialize(), few.materialize())


@in_ci
def test_extreme_scales():
    for scale in (1e-30, 1e30):
        matrix = scale * normal(M, 1) @ normal(1, N)
        code = compressors.low_rank(1, KEY)
        found = code.decompress(code.compress(matrix, KEY), (M, N), KEY)
        np.testing.assert_allclose(found / scale, matrix / scale, atol=1e-4)
