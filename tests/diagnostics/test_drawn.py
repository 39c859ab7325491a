"""Whose key a loss draws by: one of each example, of a row, or one for all."""

import jax
import jax.numpy as jnp
import pytest

import consensus_optax as co

W, X = jnp.ones(5), jax.random.normal(jax.random.key(0), (6, 5))
KEYS = {"typed": jax.random.key(1), "legacy": jax.random.PRNGKey(1)}
ALL_ALIKE = "one dropout mask for all"


def masked(w, x, key):
    return (jnp.where(jax.random.bernoulli(key, 0.5, x.shape), 2 * x, 0) @ w) ** 2


def of_batch(w, x, key):
    return jnp.mean(masked(w, x, key))


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_examples_are_a_part_of_the_batch(kind):
    loss = lambda w, b: jax.vmap(masked, (None, 0, 0))(w, *b).mean()
    batch = X, co.example_keys(KEYS[kind], X)
    assert co.check_per_example(loss, W, batch) == []
    mixed = lambda w, b: jnp.var(jax.vmap(masked, (None, 0, 0))(w, *b))
    (finding,) = co.check_per_example(mixed, W, batch)
    assert "Exactly zero" in finding or "mixes examples" in finding


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_may_be_one_or_one_for_each_row(kind):
    key = KEYS[kind]
    assert co.check_per_example(of_batch, W, X, key, prng_argnum=2) == []
    assert co.check_per_example(of_batch, W, X, key, prng_argnum=-1) == []
    keys = jax.random.split(key, len(X))
    assert co.check_per_example(of_batch, W, X, keys, prng_argnum=2) == []


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_that_is_closed_over_is_found(kind):
    key = KEYS[kind]
    scanned = lambda w, x: jax.lax.map(lambda one: masked(w, one, key), x).mean()
    for loss in (lambda w, x: of_batch(w, x, key), scanned):
        (finding,) = co.check_per_example(loss, W, X)
        assert ALL_ALIKE in finding


def test_what_is_drawn_for_others_is_not_drawn_for_a_loss():
    key = jax.random.key(0)
    plain = lambda w, x: jnp.mean((x @ w) ** 2)
    aux = lambda w, x, key: (plain(w, x), jax.random.normal(key, x.shape[:1]))
    assert co.check_per_example(aux, W, X, key, prng_argnum=2, has_aux=True) == []
    two = lambda w, x, key: {"a": plain(w, x), "b": of_batch(w, x, key)}
    assert co.check_per_example(two, W, X, key, prng_argnum=2, tasks=True) == []
    # and what is wrong with it is not hidden by what others draw
    total = lambda w, x: jnp.sum((x @ w) ** 2)
    sums = lambda w, x, key: {"a": total(w, x), "b": of_batch(w, x, key)}
    (finding,) = co.check_per_example(sums, W, X, key, prng_argnum=2, tasks=True)
    assert finding.startswith("Loss ['a']: The gradient of the batch is the sum")
