import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co

pytestmark = pytest.mark.slow


def test_rows_that_pull_together_are_dropped():
    random = np.random.default_rng(0)
    honest = random.normal(size=(7, 50))
    bad = 3 + 0.1 * random.normal(size=(3, 50))
    rows = jnp.asarray(np.concatenate([bad, honest]), jnp.float32)
    rule, params = co.divide_and_conquer(3), jnp.zeros(50)
    update = jax.jit(rule.update)(rows, rule.init(params), params)[0]
    np.testing.assert_allclose(update, honest.mean(0), atol=1e-6)


def test_the_fraction_says_how_many_are_dropped():
    rows = jnp.array([[0.0], [1.0], [2.0], [3.0], [100.0]])
    params = jnp.zeros(1)
    for fraction, wanted in ((1.0, 1.5), (2.0, 2.0), (0.5, 1.5)):
        rule = co.divide_and_conquer(1, fraction)
        assert jax.jit(rule.update)(rows, rule.init(params), params)[0] == wanted


def test_the_fraction_fixes_counts():
    with pytest.raises(ValueError, match=r"`filter_fraction` must be in \(0, inf\]"):
        co.divide_and_conquer(1, 0.0)
    with pytest.raises(ValueError, match="known when traced"):
        co.divide_and_conquer(1, lambda step: 1.0)


def test_too_few_rows_for_what_is_dropped():
    rule, params = co.divide_and_conquer(2, 3.0), jnp.zeros(1)
    with pytest.raises(
        ValueError,
        match=r"`filter_fraction` must leave n > ceil\(c f\), f=2, so with "
        r"filter_fraction=3.0 at least 7 rows are needed; got 6",
    ):
        rule.update(jnp.ones((6, 1)), rule.init(params), params)


def of_orders(rule, rows, count=6):
    params = jnp.zeros(rows.shape[1])
    update = jax.jit(lambda x: rule.update(x, rule.init(params), params)[0])
    random = np.random.default_rng(1)
    orders = [random.permutation(len(rows)) for _ in range(count)]
    return [np.asarray(update(jnp.asarray(rows[i], jnp.float32))) for i in orders]


def test_rows_whose_squares_sum_to_no_number():
    rows = np.array([[1.6e19], [-1.2e19], [1.0], [2.0], [3.0]])
    for update in of_orders(co.divide_and_conquer(2), rows):
        assert update == 2.0


def test_rows_that_do_not_stand_out_at_all_share_the_places_that_are_left():
    """Two rows are all that varies along the widest direction; three are dropped."""
    rows = np.array([[3, 0], [-3, 0], [0, 0.1], [0, -0.07], [0, 0.2], [0, 0.3], [0, 0]])
    for update in of_orders(co.divide_and_conquer(3), rows):
        np.testing.assert_allclose(update, rows[2:].mean(0), atol=1e-6)  # of 0.1
