"""Aux has the axis of its batch, however many rows; losses closed over a batch."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import consensus_optax as co
from tests.engines.test_sharded import mesh_of

B = 6
X = jnp.float32(np.random.default_rng(0).normal(size=(B, 3)))
LABELS = jnp.array([0, 1, 1, 0, 1, 0])
W = jnp.float32(np.random.default_rng(1).normal(size=(3, 2)))


def loss(w, batch):
    """What a loop pastes: logits, a scalar, and statistics that are no examples'."""
    x, labels = batch
    logits = x @ w  # (examples, 2)
    chosen = jnp.take_along_axis(logits, labels[:, None], 1)
    aux = {
        "logits": logits,
        "wide": logits[:, None, :],  # an axis of one more, which stays
        "count": jnp.float32(len(x)),
        "statistics": logits.mean(0, keepdims=True),  # (1, 2), of no example
        "of three": jnp.zeros(3),  # as many as a row of three has examples
        "scale": jnp.ones((1,)),
    }
    return -chosen.mean(), aux


def reduced(microbatch_size, **options):
    """The aux of rows a few at a time."""
    rule = co.mean()
    step = co.value_and_reduced_grad(
        loss, rule, has_aux=True, microbatch_size=microbatch_size, **options
    )
    return step(W, (X, LABELS), state=rule.init(W))[0][1]


WAYS = {
    "value and rows": lambda **how: co.per_example_value_and_grad(
        loss, has_aux=True, **how
    )(W, (X, LABELS))[0][1],
    "rows": lambda **how: co.per_example_grad(loss, has_aux=True, **how)(
        W, (X, LABELS)
    )[1],
    "in memory": lambda **how: reduced(None, **how),
    "one row at a time": lambda **how: reduced(1, **how),
    "four": lambda **how: reduced(4, **how),
    "backward": lambda **how: reduced(None, hold_rows=False, **how),
}


HOW = [{}, {"num_rows": 2}, {"group_size": 2}]
QUICK = {("value and rows", 0), ("four", 1)}
EVERY_WAY = [
    pytest.param(way, how, marks=[pytest.mark.whole_zoo] * ((way, i) not in QUICK))
    for way in WAYS
    for i, how in enumerate(HOW)
]


@pytest.mark.parametrize(("way", "how"), EVERY_WAY)
def test_aux_has_the_axis_of_the_batch(way, how):
    aux = WAYS[way](**how)
    rows = how.get("num_rows", B // how.get("group_size", 1))
    logits = X @ W
    np.testing.assert_allclose(aux["logits"], logits, rtol=1e-6)
    np.testing.assert_allclose(aux["wide"], logits[:, None], rtol=1e-6)
    assert aux["count"].tolist() == [B / rows] * rows
    assert aux["statistics"].shape == (rows, 1, 2)
    assert aux["of three"].shape == (rows, 3)
    assert aux["scale"].shape == (rows, 1)
    right = jnp.argmax(aux["logits"], -1) == LABELS  # pasted
    np.testing.assert_array_equal(right, jnp.argmax(logits, -1) == LABELS)


@pytest.mark.whole_zoo
def test_tasks_and_outputs_alike():
    both = lambda w, batch: (jnp.stack([loss(w, batch)[0]] * 2), loss(w, batch)[1])
    (_, aux), _ = co.task_value_and_grad(both, has_aux=True, group_size=2)(
        W, (X, LABELS)
    )
    np.testing.assert_allclose(aux["logits"], X @ W, rtol=1e-6)
    outputs = lambda w, x: (x @ w, {"inputs": x, "norm": jnp.sum(w**2)})
    (_, aux), _ = co.output_value_and_grad(outputs, has_aux=True)(W, X)
    np.testing.assert_array_equal(aux["inputs"], X)
    assert aux["norm"].shape == (B,)


def test_a_loss_of_one_length_has_its_leading_axis_taken_for_the_examples():
    def of_one(w, x):
        assert x.shape[0] == 1
        return jnp.mean(x @ w), x @ w

    _, aux = co.per_example_grad(of_one, has_aux=True)(W, X)
    assert aux.shape == (B, 2)


def test_without_a_batch_axis_aux_is_as_it_is():
    of_one = lambda w, x: (jnp.mean(x @ w), (x @ w)[None])
    _, aux = co.per_example_grad(of_one, has_aux=True, keep_batch_dim=False)(W, X)
    assert aux.shape == (B, 1, 2)


@pytest.mark.whole_zoo
@pytest.mark.parametrize("kind", list(AxisType)[:2])
@pytest.mark.parametrize("how", [{}, {"num_rows": 2}, {"num_rows": 3}], ids=str)
def test_on_a_mesh(kind, how):
    """Also of rows that the devices cannot share alike."""
    mesh = mesh_of(2, kind=kind)
    place = jax.NamedSharding(mesh, jax.P("data"))
    batch = jax.device_put((X, LABELS), place)
    with jax.set_mesh(mesh):
        w = jax.device_put(W, jax.NamedSharding(mesh, jax.P()))
        only = lambda w, batch: (loss(w, batch)[0], loss(w, batch)[1]["logits"])
        _, aux = jax.jit(co.per_example_grad(only, has_aux=True, **how))(w, batch)
    np.testing.assert_allclose(aux, X @ W, rtol=1e-6)


# --- closed over a batch: what must not be taken for it


FROZEN = jnp.ones((B, 2))  # weights of as many rows as there are examples
PLACES = jnp.arange(B, dtype=jnp.float32)


def frozen(w, batch):
    return jnp.mean((batch @ w) @ FROZEN.T)


def of_places(w, batch):
    """A table of as many entries, looked up by the example."""
    return jnp.mean((batch @ w) * PLACES[(batch[:, :1] > 0).astype(int)])


def at_random(w, batch, key):
    """Reads of its batch the length alone; the draws are the row's own."""
    return jnp.mean(jax.random.normal(key, (len(batch), 3)) @ w)


def whole_bank(w, batch):
    """Compares each example with a bank of as many, as contrastive losses do."""
    return jnp.mean(batch @ w @ (X @ W).T)


def by_keyword(w, batch, *, labels):
    """By keyword all rows get all of it, as said."""
    return jnp.mean((batch @ w)[:, 0] - labels)


FINE = {
    "frozen weights": (frozen, (), {}, {}),
    "table": (of_places, (), {}, {}),
    "random": (at_random, (jax.random.key(0),), {}, {"prng_argnum": 2}),
    "bank": (whole_bank, (), {}, {}),
    "keyword": (by_keyword, (), {"labels": jnp.ones(B)}, {}),
    "one row": (lambda w, _: jnp.mean(X @ w), (), {}, {"num_rows": 1}),
    "without a batch axis": (
        lambda w, x: jnp.mean(x @ w @ FROZEN.T),
        (),
        {},
        {"keep_batch_dim": False},
    ),
}


@pytest.mark.parametrize("case", FINE)
def test_what_is_no_batch_may_be_closed_over(case):
    fun, more, keywords, how = FINE[case]
    rows_of = co.per_example_grad(fun, **how)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.jit(lambda w: rows_of(w, X, *more, **keywords))(W)


def test_a_step_that_closes_its_loss_over_its_own_arguments():
    """As Flax's documentation writes it: what is closed over is traced."""

    @jax.jit
    def step(w, x, labels):
        def loss(w):
            return jnp.mean((x @ w)[:, 0] - labels)

        return co.per_example_grad(lambda w, _: loss(w))(w, x)

    with pytest.raises(ValueError, match="does not read its batch"):
        step(W, X, jnp.ones(B))
