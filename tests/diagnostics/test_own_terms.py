"""Penalties in a loss are found, and what only looks like one is not."""

import jax
import jax.numpy as jnp
import optax
import pytest

from consensus_optax.diagnostics._own_terms import has_own_term

PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.ones(2), "s": jnp.ones(())}
BATCH = (jnp.ones((4, 3)), jnp.zeros(4, jnp.int32))


def data(p, batch):
    logits = (batch[0] @ p["w"] + p["b"][None]) * jnp.exp(p["s"])
    each = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
    return each.mean()


def squares(p):
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(p))


FOUND = {
    "squares": lambda p, batch: data(p, batch) + 1e-4 * squares(p),
    "absolute": lambda p, batch: data(p, batch) + 1e-3 * jnp.abs(p["w"]).sum(),
    "the norm": lambda p, batch: (data(p, batch) + optax.tree.norm(p)) / 2,
    "of one parameter": lambda p, batch: 0.1 * p["s"] ** 2 + data(p, batch),
    "in each example": lambda p, batch: (
        (jnp.ones(4) * squares(p)).mean() + data(p, batch)
    ),
    "behind jit": jax.jit(lambda p, batch: data(p, batch) + jax.jit(squares)(p)),
    "of a product": lambda p, batch: data(p, batch) - (p["w"] @ p["b"]).sum(),
    "where examples choose": lambda p, batch: jnp.where(
        batch[1] > 0, 0, data(p, batch) + squares(p)
    ).mean(),
    "recomputed": jax.checkpoint(lambda p, batch: data(p, batch) + squares(p)),
}
SILENT = {
    "none": data,
    "a linear loss": lambda p, batch: (batch[0] @ p["w"] + p["b"][None]).mean(),
    "normalized weights": lambda p, batch: data(
        p | {"w": p["w"] / jnp.linalg.norm(p["w"])}, batch
    ),
    "a learned scale": lambda p, batch: data(p, batch) * jnp.exp(-p["s"]) + p["s"],
    "of the activations": lambda p, batch: (
        data(p, batch) + jnp.square(batch[0] @ p["w"]).mean()
    ),
    "without a gradient": lambda p, batch: (
        data(p, batch) + jax.lax.stop_gradient(squares(p))
    ),
    "of the batch": lambda p, batch: data(p, batch) + (batch[0] ** 2).mean(),
}


@pytest.mark.parametrize("name", FOUND)
def test_found(name):
    assert has_own_term(FOUND[name], (PARAMS, BATCH), {})


@pytest.mark.parametrize("name", SILENT)
def test_silent(name):
    assert not has_own_term(SILENT[name], (PARAMS, BATCH), {})


def test_whatever_the_order_of_arguments():
    other = lambda batch, scale, p: (data(p, batch) * scale + squares(p), 0)
    options = {"argnums": 2, "batch_argnums": 0, "has_aux": True}
    assert has_own_term(other, (BATCH, 2.0, PARAMS), options)
    options = {"argnums": (2, 1), "batch_argnums": 0, "has_aux": True}
    plain = lambda batch, scale, p: (data(p, batch) * scale, squares(p))
    assert not has_own_term(plain, (BATCH, 2.0, PARAMS), options)


OF_THE_DATA = {
    "times": lambda w, x: jnp.mean(x * jnp.exp(w)[None]),
    "soft labels": lambda w, x: jnp.mean(jax.nn.softmax(x) @ jax.nn.log_softmax(w)),
    "divided": lambda w, x: jnp.mean(jnp.exp(w)[None] / (1 + x**2)),
    "unit length": lambda w, x: jnp.mean(x @ (w / jnp.linalg.norm(w))),
}


@pytest.mark.parametrize("name", OF_THE_DATA)
def test_what_the_data_multiply_is_no_term_of_its_own(name):
    x = jax.random.normal(jax.random.key(0), (5, 4))
    w = jnp.linspace(0.5, 1.5, 4)
    loss = OF_THE_DATA[name]
    assert not has_own_term(loss, (w, x), {})
    with_penalty = lambda w, x: loss(w, x) + 0.1 * jnp.sum(jnp.exp(w))
    assert has_own_term(with_penalty, (w, x), {})
