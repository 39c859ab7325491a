"""Rows do not pass a guard."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co

PARAMS = {"a": jnp.ones(3), "step": jnp.ones((), jnp.int32)}
ROWS = {"a": jnp.ones((4, 3)), "step": jnp.ones(4, jnp.int32)}


def first_update(tx, rows, params=PARAMS):
    return tx.update(rows, tx.init(params), params)[0]


def test_updates_pass_as_they_are():
    updates = {"a": jnp.arange(3.0), "step": np.zeros((), jax.dtypes.float0)}
    assert first_update(co.guard(), updates) is updates
    updates = first_update(optax.chain(co.mean(), co.guard()), ROWS)
    assert updates["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", ["a", "step"])
def test_rows_do_not_whatever_their_dtype(name):
    rows = {**first_update(co.mean(), ROWS), name: ROWS[name]}
    with pytest.raises(ValueError, match=f"`.'{name}'.` is .4.*reducer missing"):
        first_update(co.guard(), rows)


def test_factored_rows_do_not():
    rows = co.OuterProduct(jnp.ones((4, 1, 2)), jnp.ones((4, 1, 3)), (2, 3))
    with pytest.raises(ValueError, match=r"`\(root\)` is \(4, 2, 3\).*reducer missing"):
        first_update(co.guard(), rows, jnp.ones((2, 3)))


def test_parameters_are_needed():
    with pytest.raises(ValueError, match="needs `params`"):
        co.guard().update(ROWS, optax.EmptyState())
