"""Models with layers inside ``lax.scan``, as deep ones are often written."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from tests._models import LENGTH, ROWS, WIDTH, Model, array, bounded, square

DEPTH = 3


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


def not_understood() -> Model:
    """What ends no gradient, or is no sum: a bounded gradient, a carry that is read."""
    params = {"bounded": array(0, DEPTH, WIDTH, WIDTH), "read": array(1, WIDTH, WIDTH)}

    def loss(p, x):
        def layer(carry, w_of_layer):
            x, w = carry
            return (jnp.tanh(bounded(x, w_of_layer) + x @ w), 0.9 * w), None

        return square(lax.scan(layer, (x, p["read"]), p["bounded"])[0][0])

    return Model(loss, params, array(2, ROWS, WIDTH), set())


def convolutions() -> Model:
    """Residual blocks: convolutions become products before they are mapped."""
    params = {"kernel": array(0, DEPTH, 3, 3, 16, 16), "scale": 1 + array(1, DEPTH, 16)}

    def loss(p, x):
        def block(x, p):
            dims = ("NHWC", "HWIO", "NHWC")
            y = jax.nn.relu(x * p["scale"][None, None, None])
            same = ((1, 1), "SAME")
            y = lax.conv_general_dilated(y, p["kernel"], *same, dimension_numbers=dims)
            return x + y, None

        return square(lax.scan(block, x, p)[0])

    return Model(loss, params, array(2, ROWS, 3, 3, 16), {"['kernel']"})


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
        *(layers, transformer, checkpointed, jitted, groups_of_layers, used_twice),
        *(not_understood, convolutions, with_effects, linen, nnx, equinox),
    )
}
