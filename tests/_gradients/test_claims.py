"""Which gradients may be reduced where they are made, and on which way they come."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from consensus_optax._gradients import claims
from consensus_optax._gradients.claims import Reduced
from consensus_optax._gradients.contraction import reduced
from consensus_optax._rows.outer_product import is_outer_product, materialize

ROWS = 3


def sums(claim, rows):
    """Sums over rows, of them and of their products with what the claim has."""
    whole = materialize(rows)
    with_like = (whole * claim.like[None]).reshape(ROWS, -1).sum(1)
    return Reduced(with_like, whole.sum(0))


def looked_at(loss, params, x):
    """(reduced leaves, rows, likes) of a loss of one row."""
    like = jax.tree.map(
        lambda w: jnp.sin(jnp.arange(1.0, w.size + 1)).reshape(w.shape), params
    )
    likes = jax.tree.leaves(like)
    of_row = jax.value_and_grad(loss)
    _, leaves = reduced(of_row, (None, 0), (params, x), sums, likes)
    wanted = jax.vmap(of_row, (None, 0))(params, x)[1]
    return leaves, jax.tree.leaves(wanted), likes


def draw(seed, *shape):
    return jnp.asarray(
        0.5 * np.random.default_rng(seed).normal(size=shape), jnp.float32
    )


def dense(x, w):
    return jnp.tanh(x @ w)


def scanned(w, x, layer=dense):
    return lax.scan(lambda x, w: (layer(x, w), None), x, w)[0]


X = draw(0, ROWS, 2, 4)
LAYERS = (5, 4, 4)
WAYS = {
    "stacked": (scanned, LAYERS),
    "of a call": (jax.jit(scanned), LAYERS),
    "checkpointed": (lambda w, x: scanned(w, x, jax.checkpoint(dense)), LAYERS),
    "layers last": (lambda w, x: scanned(w.transpose(2, 1, 0), x), (4, 4, 5)),
    "apart": (lambda w, x: scanned(w.reshape(LAYERS), x), (5, 2, 2, 4)),
    "scaled": (lambda w, x: scanned(w, x, lambda x, w: dense(x, 2 * w)), LAYERS),
    "scans": (lambda w, x: scanned(w, x, lambda x, w: scanned(w, x)), (2, 3, 4, 4)),
    "one layer": (lambda w, x: dense(x, w), (4, 4)),
    "transposed": (lambda w, x: dense(x, w.T), (6, 4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_what_is_made_of_a_layer_comes_back_as_its_parameter(way):
    model, shape = WAYS[way]
    loss = lambda w, x: model(w, x).sum()
    (leaf,), (rows,), (like,) = looked_at(loss, draw(1, *shape), X)
    assert isinstance(leaf, Reduced)
    # of sums in another order, of entries of order one
    np.testing.assert_allclose(leaf.likes, rows.sum(0), atol=1e-5)
    wanted = (rows * like[None]).reshape(ROWS, -1).sum(1)
    np.testing.assert_allclose(leaf.sums, wanted, atol=1e-5)


def _twice(w, x):
    return (scanned(w, scanned(w, x))).sum()


def _read(w, x):
    """A layer that is used outside of the scan as well."""
    return scanned(w, x).sum() + (x @ w[0]).sum()


def _in_every_step(w, x):
    return lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ w[0]), x).sum()


@pytest.mark.parametrize("loss", [_twice, _read, _in_every_step])
def test_what_is_added_up_is_not_reduced_before(loss):
    (leaf,), (rows,), _ = looked_at(loss, draw(1, 2, 4, 4), X)
    assert not isinstance(leaf, Reduced)
    np.testing.assert_allclose(materialize(leaf), rows, atol=1e-5)


def test_small_arrays_are_held(monkeypatch):
    def loss(b, x):
        return lax.scan(lambda x, b: (jnp.tanh(x + b[None]), None), x, b)[0].sum()

    (leaf,), (rows,), _ = looked_at(loss, draw(1, 5, 4), X)
    assert not isinstance(leaf, Reduced)
    assert not is_outer_product(leaf)
    monkeypatch.setattr(claims, "SMALL", 4)
    (leaf,), (rows,), _ = looked_at(loss, draw(1, 5, 4), X)
    assert isinstance(leaf, Reduced)
    np.testing.assert_allclose(leaf.likes, rows.sum(0), atol=1e-5)


@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2, 1)], ids=str)
def test_two_leaves_of_one_variable(axes):
    """Of layers whose gradients are one and the same, or that turned, each its own."""
    loss = lambda both, x: scanned(both[0] + both[1].transpose(axes), x).sum()
    leaves, rows, likes = looked_at(loss, (draw(1, 5, 4, 4), draw(2, 5, 4, 4)), X)
    for leaf, wanted, like in zip(leaves, rows, likes, strict=True):
        made = leaf
        if not isinstance(leaf, Reduced):
            made = sums(claims.Claim(0, jnp.float32, 0, like), leaf)
        np.testing.assert_allclose(made.likes, wanted.sum(0), atol=1e-5)
        inner = (wanted * like[None]).reshape(ROWS, -1).sum(1)
        np.testing.assert_allclose(made.sums, inner, atol=1e-5)
