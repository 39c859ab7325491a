import jax
import jax.numpy as jnp
import pytest

import consensus_optax as co


def update(rule, rows, **extra):
    params = jnp.zeros(1)
    return jax.jit(rule.update)(rows, rule.init(params), params, **extra)[0].tolist()


def test_others_are_counted_as_in_the_paper():
    """With n - f - 1 others the row at 4 would win, with distances the row at 2."""
    rows = jnp.array([[0.0], [1.5], [4.0], [5.6], [8.0], [40.0]])
    squares = lambda i, j: float((rows[i, 0] - rows[j, 0]) ** 2)
    count = 6 - 1 - 2
    scores = [
        sum(sorted(squares(i, j) for j in range(6) if j != i)[:count]) for i in range(6)
    ]
    best = scores.index(min(scores))
    assert update(co.krum(1), rows) == rows[best].tolist()


def test_weights_average_the_selected():
    rows = jnp.array([[0.0], [1.0], [2.0], [50.0], [60.0]])
    weights = jnp.array([1.0, 1.0, 3.0, 1.0, 1.0])
    # 1.4 is no float32
    assert update(co.krum(1, 3), rows, weights=weights) == pytest.approx([1.4], 1e-6)


def test_tied_rows_share_the_last_place():
    rows = jnp.array([[-1.0], [1.0], [0.0], [3.0], [-3.0]])
    assert update(co.krum(1, 2), rows) == [0.0]


def test_more_rows_than_honest_ones_cannot_be_selected():
    rule, params = co.krum(1, 5), jnp.zeros(1)
    with pytest.raises(ValueError, match="`num_selected` must leave m <= n - f"):
        jax.jit(rule.update)(jnp.ones((5, 1)), rule.init(params), params)
    with pytest.raises(ValueError, match="`num_selected` must be at least 1"):
        co.krum(1, 0)
