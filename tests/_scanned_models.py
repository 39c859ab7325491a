"""Models with layers or time inside ``lax.scan``, as deep and recurrent ones are."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from tests._models import LENGTH, ROWS, WIDTH, Model, array, square

DEPTH, HIDDEN = 3, 24


def layers() -> Model:
    """Kernels and biases of all layers stacked; biases have no factors."""
    params = {
        "kernel": array(0, DEPTH, WIDTH, WIDTH),
        "bias": array(1, DEPTH, WIDTH),
        "out": array(2, WIDTH, 8),
    }

    def loss(p, x):
        layer = lambda x, w: (jnp.tanh(x @ w["kernel"] + w["bias"][None]), None)
        of_layers = {"kernel": p["kernel"], "bias": p["bias"]}
        return square(lax.scan(layer, x, of_layers)[0] @ p["out"])

    batch = array(3, ROWS, WIDTH)
    return Model(loss, params, batch, {"['kernel']", "['out']"})


def transformer(wrap=lambda block: block, **options) -> Model:
    """Blocks of attention and a perceptron, with two heads, layer norm, residuals."""
    params = {
        "qkv": array(0, DEPTH, WIDTH, 3, 2, 8),
        "out": array(1, DEPTH, 2, 8, WIDTH),
        "up": array(2, DEPTH, WIDTH, 4 * WIDTH),
        "down": array(3, DEPTH, 4 * WIDTH, WIDTH),
        "scale": 1 + array(4, DEPTH, WIDTH),
    }

    def norm(x, scale):
        centred = x - x.mean(-1, keepdims=True)
        size = lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)
        return centred * size * scale[None, None]

    def block(x, p):
        qkv = jnp.einsum("btd,dchk->btchk", norm(x, p["scale"]), p["qkv"])
        q, k, v = jnp.moveaxis(qkv, 2, 0)
        attention = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k), -1)
        mixed = jnp.einsum("bhts,bshk->bthk", attention, v)
        x = x + jnp.einsum("bthk,hkd->btd", mixed, p["out"])
        return x + jax.nn.gelu(x @ p["up"]) @ p["down"], x.mean()

    def loss(p, x):
        x, means = lax.scan(wrap(block), x, p, **options)
        return square(x) + means.sum()

    factored = {"['qkv']", "['out']", "['up']", "['down']"}
    return Model(loss, params, array(7, ROWS, LENGTH, WIDTH), factored)


def checkpointed() -> Model:
    return transformer(jax.checkpoint)


def jitted() -> Model:
    """A call in the body, the scan in a call, and every second turn unrolled."""
    model = transformer(jax.jit, reverse=True, unroll=2)
    return model._replace(loss=jax.jit(model.loss))


def lstm(wrap=lambda cell: cell, **options) -> Model:
    """Shared weights are added up over time, from zeros; a start that is learned."""
    params = {
        "x": array(0, WIDTH, 4 * HIDDEN),
        "h": array(1, HIDDEN, 4 * HIDDEN),
        "bias": array(2, 4 * HIDDEN),
        "start": array(3, HIDDEN),
        "out": array(4, HIDDEN, 12),
    }

    def loss(p, batch):
        def cell(state, x):
            h, c = state
            gates = x @ p["x"] + h @ p["h"] + p["bias"][None]
            i, f, g, o = jnp.split(gates, 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        start = jnp.broadcast_to(p["start"][None], (batch.shape[0], HIDDEN))
        state, outs = lax.scan(
            wrap(cell), (start, start), batch.swapaxes(0, 1), **options
        )
        return square(state[0] @ p["out"]) + square(outs @ p["out"])

    batch = array(5, ROWS, LENGTH, WIDTH)
    return Model(loss, params, batch, {"['x']", "['h']", "['out']"})


def lstm_checkpointed() -> Model:
    return lstm(jax.checkpoint, reverse=True)


def lstm_jitted() -> Model:
    model = lstm(jax.jit, unroll=2)
    return model._replace(loss=jax.checkpoint(model.loss))


def too_long() -> Model:
    """So many steps that the factors are larger; one kernel of two stays as it was."""
    params = {"narrow": array(0, 4, 4), "wide": array(1, 4, 200), "v": array(2, 200, 4)}

    def loss(p, batch):
        def cell(h, x):
            return jnp.tanh(h @ p["narrow"] + jnp.sin(x @ p["wide"]) @ p["v"]), None

        return square(lax.scan(cell, batch[:, 0], batch.swapaxes(0, 1))[0])

    batch = array(3, ROWS, LENGTH, 4)
    return Model(loss, params, batch, {"['wide']", "['v']"})


def both() -> Model:
    """Layers within time: a stack of recurrent cells, each with weights of its own."""
    params = {"x": array(0, DEPTH, WIDTH, WIDTH), "h": array(1, DEPTH, WIDTH, WIDTH)}

    def loss(p, batch):
        def layer(x, of_layer):
            h, w, u = of_layer
            h = jnp.tanh(x @ w + h @ u)
            return h, h

        def step(state, x):
            x, state = lax.scan(layer, x, (state, p["x"], p["h"]))
            return state, x

        start = jnp.zeros((DEPTH, batch.shape[0], WIDTH))
        return square(lax.scan(step, start, batch.swapaxes(0, 1))[1])

    batch = array(2, ROWS, LENGTH, WIDTH)
    return Model(loss, params, batch, {"['x']", "['h']"})


def time_in_layers() -> Model:
    """Time within layers: recurrent layers one after the other."""
    params = {"x": array(0, DEPTH, WIDTH, WIDTH), "h": array(1, DEPTH, WIDTH, WIDTH)}

    def loss(p, batch):
        def layer(xs, w):
            def step(h, x):
                h = jnp.tanh(x @ w["x"] + h @ w["h"])
                return h, h

            return lax.scan(step, jnp.zeros_like(xs[0]), xs)[1], None

        return square(lax.scan(layer, batch.swapaxes(0, 1), p)[0])

    batch = array(2, ROWS, LENGTH, WIDTH)
    return Model(loss, params, batch, {"['x']", "['h']"})


def groups_of_layers() -> Model:
    """Layers in groups, each group a scan; the axis of groups is not the first one."""
    params = {"w": array(0, WIDTH, 2, DEPTH, WIDTH), "out": array(1, WIDTH, 8)}

    def loss(p, x):
        layer = lambda x, w: (jnp.tanh(x @ w), None)
        group = jax.checkpoint(lambda x, w: (lax.scan(layer, x, w)[0], None))
        w = p["w"].transpose(1, 2, 0, 3)
        return square(lax.scan(group, x, w)[0] @ p["out"])

    return Model(loss, params, array(2, ROWS, WIDTH), {"['w']", "['out']"})


def used_twice() -> Model:
    """The same layers twice over, once in bfloat16: two scans, one gradient."""
    params = {"w": array(0, DEPTH, WIDTH, WIDTH)}

    def loss(p, x):
        layer = lambda x, w: (jnp.tanh(x @ w + x @ w.T), None)
        for _ in range(2):
            x, _ = lax.scan(layer, x, p["w"])
        return square(x)

    return Model(loss, params, array(1, ROWS, WIDTH), {"['w']"})


def tables() -> Model:
    """Look-ups: added up over time they stay factored, those of layers do not."""
    params = {"words": array(0, 40, WIDTH), "layers": array(1, DEPTH, 40, WIDTH)}

    def loss(p, tokens):
        def cell(h, token):
            return jnp.tanh(h + p["words"][token]), None

        def layer(h, table):
            return jnp.tanh(h + table[tokens[:, 0]]), None

        start = jnp.zeros((tokens.shape[0], WIDTH))
        h, _ = lax.scan(cell, start, tokens.swapaxes(0, 1))
        return square(lax.scan(layer, h, p["layers"])[0])

    tokens = jnp.arange(ROWS * LENGTH, dtype=jnp.int32).reshape(ROWS, LENGTH) % 7
    return Model(loss, params, tokens, {"['words']"})


def not_understood() -> Model:
    """What ends no gradient, or is no sum: a scaled gradient, a carry that is read."""
    params = {"scaled": array(0, DEPTH, WIDTH, WIDTH), "read": array(1, WIDTH, WIDTH)}

    @jax.custom_vjp
    def half(x, w):
        return x @ w

    half.defvjp(
        lambda x, w: (x @ w, (x, w)),
        lambda kept, ct: (0.5 * ct @ kept[1].T, 0.5 * (kept[0].T @ ct)),
    )

    def loss(p, x):
        def layer(carry, scaled):
            x, w = carry
            return (jnp.tanh(half(x, scaled) + x @ w), 0.9 * w), None

        return square(lax.scan(layer, (x, p["read"]), p["scaled"])[0][0])

    return Model(loss, params, array(2, ROWS, WIDTH), set())


def with_effects() -> Model:
    """A body that calls back to the host when it is run again for the gradient."""
    seen = functools.partial(jax.debug.callback, lambda x: None)

    def wrap(block):
        def looked_at(x, p):
            seen(x.sum())
            return block(x, p)

        return jax.checkpoint(looked_at)

    return transformer(wrap)._replace(factored=set())


def linen() -> Model:
    from flax import linen as nn

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + nn.Dense(WIDTH)(nn.relu(nn.Dense(2 * WIDTH)(x))), None

    stacked = nn.scan(
        nn.remat(Block, prevent_cse=False),
        variable_axes={"params": 1},
        split_rngs={"params": True},
        length=DEPTH,
    )
    net, x = stacked(), array(0, ROWS, WIDTH)
    params = net.init(jax.random.key(0), x, None)
    factored = {f"['params']['Dense_{i}']['kernel']" for i in (0, 1)}
    return Model(lambda p, x: square(net.apply(p, x, None)[0]), params, x, factored)


def nnx() -> Model:
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
            self.down = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

        def __call__(self, x):
            return x + self.down(nnx.relu(self.up(x)))

    blocks = nnx.vmap(Block)(nnx.Rngs(0).split(DEPTH))
    graph, params = nnx.split(blocks, nnx.Param)
    forward = nnx.scan(
        lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
    )
    loss = lambda p, x: square(forward(x, nnx.merge(graph, p)))
    factored = {"['up']['kernel'].value", "['down']['kernel'].value"}
    return Model(loss, params, array(0, ROWS, WIDTH), factored)


def equinox() -> Model:
    import equinox as eqx

    make = lambda key: eqx.nn.MLP(WIDTH, WIDTH, 32, 1, key=key)
    blocks = eqx.filter_vmap(make)(jax.random.split(jax.random.key(0), DEPTH))
    params, static = eqx.partition(blocks, eqx.is_inexact_array)

    def loss(params, x):
        block = lambda x, p: (x + jax.vmap(eqx.combine(p, static))(x), None)
        return square(lax.scan(block, x, params)[0])

    factored = {".layers[0].weight", ".layers[1].weight"}
    return Model(loss, params, array(0, ROWS, WIDTH), factored)


SCANNED = {
    model.__name__: model
    for model in (
        *(layers, transformer, checkpointed, jitted, lstm, lstm_checkpointed),
        *(lstm_jitted, too_long, both, time_in_layers, groups_of_layers, used_twice),
        *(tables, not_understood, with_effects, linen, nnx, equinox),
    )
}
