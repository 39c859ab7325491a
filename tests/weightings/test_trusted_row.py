import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co

ROWS = jnp.array([[3.0, 0.0], [1.0, 1.0], [-5.0, 0.0], [0.0, 0.0], [10.0, 0.0]])


def update(rule, rows=ROWS, **extra):
    params = jnp.zeros(rows.shape[1])
    return jax.jit(rule.update)(rows, rule.init(params), params, **extra)


def test_rows_count_by_their_cosine_at_the_trusted_length():
    share = 1 / (1 + np.sqrt(0.5))
    wanted = share * np.array([3, 0]) + (1 - share) * 3 * np.sqrt(0.5)
    np.testing.assert_allclose(update(co.trusted_row())[0], wanted, rtol=1e-6)


def test_the_length_of_the_others_does_not_matter():
    longer = ROWS * jnp.array([1.0, 1e8, 1e-8, 1.0, 1e-8])[:, None]
    plain, scaled = update(co.trusted_row())[0], update(co.trusted_row(), longer)[0]
    np.testing.assert_allclose(plain, scaled, rtol=1e-6)


@pytest.mark.parametrize(
    "case",
    [
        (co.trusted_row(3), {}),  # a row of zeros
        (co.trusted_row(2), {}),  # nobody agrees
        (co.trusted_row(0), {"weights": jnp.array([0.0, 1, 1, 1, 1])}),
        (co.trusted_row(0), {"weights": jnp.array([1.0, 0, 0, 0, 0])}),
    ],
)
def test_nothing_to_trust_is_empty(case):
    rule, extra = case
    got, state = update(rule, **extra)
    assert not got.any()
    assert not state.consensus_ready


def test_order_of_the_others_and_their_counts():
    order = jnp.array([0, 4, 2, 1, 3])
    np.testing.assert_allclose(
        update(co.trusted_row(), ROWS[order])[0], update(co.trusted_row())[0]
    )
    twice = update(co.trusted_row(), weights=jnp.array([7.0, 2, 1, 1, 1]))[0]
    repeated = update(co.trusted_row(), jnp.concatenate([ROWS, ROWS[1:2]]))[0]
    np.testing.assert_allclose(twice, repeated, rtol=1e-6)


def test_a_row_that_is_not_there_is_an_error():
    rule, params = co.trusted_row(5), jnp.zeros(2)
    message = "`index` must be less than the number of rows, 5; got 5"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(rule.update, ROWS, rule.init(params), params)
