"""Models that use the same weights in every step of a scan over time."""

import jax
import jax.numpy as jnp
from jax import lax

from tests._models import LENGTH, ROWS, WIDTH, Model, array, square

DEPTH, HIDDEN = 3, 24


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


RECURRENT = {
    model.__name__: model
    for model in (
        *(lstm, lstm_checkpointed, lstm_jitted, too_long, both, time_in_layers, tables),
    )
}
