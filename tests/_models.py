"""Small models of many kinds: (loss, params, batch, paths of leaves to be factored)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import consensus_optax as co

ROWS, LENGTH, WIDTH, WORDS = 4, 3, 16, 40


class Model(NamedTuple):
    """A loss of (params, batch), and which leaves end in a last contraction."""

    loss: Any
    params: Any
    batch: Any
    factored: set[str]


def array(seed: int, *shape: int) -> jax.Array:
    numbers = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(numbers / np.sqrt(max(shape[0], 1)), jnp.float32)


def tokens(seed: int) -> jax.Array:
    numbers = np.random.default_rng(seed).integers(0, WORDS, size=(ROWS, LENGTH))
    return jnp.asarray(numbers, jnp.int32)


def square(out: jax.Array) -> jax.Array:
    return jnp.mean(out * out)


@jax.custom_vjp
def bounded(x: jax.Array, w: jax.Array) -> jax.Array:
    """A product whose gradient is bounded entry by entry, after its contraction."""
    return x @ w


bounded.defvjp(
    lambda x, w: (x @ w, (x, w)),
    lambda kept, ct: (ct @ kept[1].T, jnp.minimum(kept[0].T @ ct, 1e-3)),
)


def mlp() -> Model:
    params = {"w": array(0, WIDTH, 32), "b": array(1, 32), "v": array(2, 32, 8)}

    def loss(p, x):
        return square(jnp.tanh(x @ p["w"] + p["b"][None]) @ p["v"])

    return Model(loss, params, array(3, ROWS, WIDTH), {"['w']", "['v']"})


def cnn() -> Model:
    params = {"k": array(0, 3, 3, 2, 4), "scale": array(1, 4), "w": array(2, 4, 32)}

    def loss(p, x):
        dims = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(x, p["k"], (1, 1), "SAME", dimension_numbers=dims)
        mean = x.mean((1, 2), keepdims=True)  # group norm, one group per channel
        x = (x - mean) * lax.rsqrt(x.var((1, 2), keepdims=True) + 1e-5)
        x = jax.nn.relu(x * p["scale"][None, None, None])
        return square(x.mean((1, 2)) @ p["w"])

    return Model(loss, params, array(3, ROWS, 5, 5, 2), {"['w']"})


def transformer(look_up=lambda table, tokens: table[tokens]) -> Model:
    """Attention with two heads, layer norm, residuals, a tied table of words."""
    params = {
        "words": array(0, WORDS, WIDTH),
        "places": array(1, LENGTH, WIDTH),
        "qkv": array(2, WIDTH, 3, 2, 8),
        "out": array(3, 2, 8, WIDTH),
        "up": array(4, WIDTH, 64),
        "down": array(5, 64, WIDTH),
        "scale": array(6, WIDTH),
    }

    def norm(x, scale):
        centred = x - x.mean(-1, keepdims=True)
        size = lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)
        return centred * size * scale[None, None]

    def loss(p, batch):
        x = look_up(p["words"], batch) + p["places"][None]
        q, k, v = jnp.moveaxis(
            jnp.einsum("btd,dchk->btchk", norm(x, p["scale"]), p["qkv"]), 2, 0
        )
        attention = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k), -1)
        mixed = jnp.einsum("bhts,bshk->bthk", attention, v)
        x = x + jnp.einsum("bthk,hkd->btd", mixed, p["out"])
        x = x + jax.nn.gelu(x @ p["up"]) @ p["down"]
        logits = x @ p["words"].T
        return -jax.nn.log_softmax(logits)[..., 1].mean()

    factored = {"['words']", "['qkv']", "['out']", "['up']", "['down']"}
    return Model(loss, params, tokens(7), factored)


def called_twice() -> Model:
    """One layer used twice, once transposed: factors of both uses are joined."""
    params = {"w": array(0, WIDTH, WIDTH), "v": array(1, WIDTH, 24)}

    def loss(p, x):
        x = jnp.tanh(x @ p["w"]) @ p["w"].T
        return square(jnp.tanh(x @ p["w"]) @ p["v"]) + square(x @ p["v"])

    return Model(loss, params, array(2, ROWS, WIDTH), {"['w']", "['v']"})


def wrapped() -> Model:
    """Layers in jit, checkpoint, custom_vjp and custom_jvp; one gets no gradient."""
    params = {
        "jit": array(0, WIDTH, WIDTH),
        "remat": array(1, WIDTH, WIDTH),
        "vjp": array(2, WIDTH, WIDTH),
        "none": array(3, WIDTH, WIDTH),
    }

    def loss(p, x):
        x = jax.jit(lambda x, w: jax.nn.relu(x @ w))(x, p["jit"])
        x = jax.checkpoint(lambda x, w: jnp.tanh(x @ w))(x, p["remat"])
        return square(bounded(x, p["vjp"])) + 0 * lax.stop_gradient(p["none"]).sum()

    # "vjp" is bounded after its contraction, which ends the walk back
    return Model(loss, params, array(4, ROWS, WIDTH), {"['jit']", "['remat']"})


def mixed_precision() -> Model:
    """bfloat16 products of float32 parameters, summed in float32."""
    params = {"w": array(0, WIDTH, 32), "v": array(1, 32, 8)}

    def loss(p, x):
        low = lambda x: x.astype(jnp.bfloat16)
        dot = lambda x, w: lax.dot(low(x), low(w), preferred_element_type=jnp.float32)
        return square(dot(jnp.tanh(dot(x, p["w"])), p["v"]))

    return Model(loss, params, array(2, ROWS, WIDTH), {"['w']", "['v']"})


def linen() -> Model:
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.LayerNorm()(nn.Dense(32)(x)))
            return nn.DenseGeneral((2, 8))(x)

    net, x = Net(), array(0, ROWS, WIDTH)
    params = net.init(jax.random.key(0), x)
    factored = {
        "['params']['Dense_0']['kernel']",
        "['params']['DenseGeneral_0']['kernel']",
    }
    return Model(lambda p, x: square(net.apply(p, x)), params, x, factored)


def nnx() -> Model:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(WIDTH, 32, rngs=rngs)
            self.norm = nnx.LayerNorm(32, rngs=rngs)
            self.last = nnx.Linear(32, 8, rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.relu(self.norm(self.first(x))))

    graph, params = nnx.split(Net(nnx.Rngs(0)), nnx.Param)
    loss = lambda p, x: square(nnx.merge(graph, p)(x))
    factored = {"['first']['kernel'].value", "['last']['kernel'].value"}
    return Model(loss, params, array(0, ROWS, WIDTH), factored)


def equinox() -> Model:
    import equinox as eqx

    net = eqx.nn.MLP(WIDTH, 8, 32, 1, key=jax.random.key(0))
    params, static = eqx.partition(net, eqx.is_inexact_array)
    loss = lambda p, x: square(jax.vmap(eqx.combine(p, static))(x))
    factored = {".layers[0].weight", ".layers[1].weight"}
    return Model(loss, params, array(0, ROWS, WIDTH), factored)


MODELS = {
    model.__name__: model
    for model in (
        *(mlp, cnn, transformer, called_twice, wrapped),
        *(mixed_precision, linen, nnx, equinox),
    )
}


def assert_close(x, y, tolerance):
    """Equality relative to the largest entry."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    np.testing.assert_allclose(
        x, y, rtol=0, atol=tolerance * max(np.abs(y).max(), 1e-9)
    )


def assert_rows(model: Model, tolerance: float) -> None:
    """Rows are those of `vmap` of `grad`, and the leaves it names are factored."""
    one = lambda p, x: jax.grad(model.loss)(p, jax.tree.map(lambda a: a[None], x))
    lazy = co.per_example_grad(model.loss)
    arrays = co.per_example_grad(model.loss, materialize=True)
    each = (jax.vmap(one, (None, 0)), lazy, arrays)
    run = jax.jit(lambda *args: [rows(*args) for rows in each])
    expected, given, whole = run(model.params, model.batch)
    flat, _ = jax.tree_util.tree_flatten_with_path(given, is_leaf=co.is_outer_product)
    factored = {
        jax.tree_util.keystr(path) for path, leaf in flat if co.is_outer_product(leaf)
    }
    assert factored == model.factored
    rows = zip(
        jax.tree.leaves(co.materialize(given)),
        jax.tree.leaves(whole),
        jax.tree.leaves(expected),
        strict=True,
    )
    for x, y, z in rows:
        assert x.shape == y.shape == z.shape
        assert x.dtype == z.dtype
        assert_close(x, z, tolerance)
        assert_close(y, z, 2e-6)  # float32 rounding
