"""Models that use weights otherwise than whole and once, as libraries do."""

import jax
import jax.numpy as jnp
from jax import lax

from tests._models import (
    LENGTH,
    ROWS,
    WIDTH,
    WORDS,
    Model,
    array,
    square,
    tokens,
    transformer,
)
from tests._scanned_models import DEPTH


def look_up_by_vmap() -> Model:
    """Equinox's way to embed: one index at a time, mapped over tokens."""
    import equinox as eqx

    net = eqx.nn.Embedding(WORDS, WIDTH, key=jax.random.key(0))
    params, static = eqx.partition(net, eqx.is_inexact_array)

    def loss(params, batch):
        look_up = jax.vmap(jax.vmap(eqx.combine(params, static)))
        return square(jnp.tanh(look_up(batch)))

    return Model(loss, params, tokens(1), {".weight"})


def times_a_number() -> Model:
    """Constants, a sign, a divisor, a number of each row; in layers of a scan too."""
    params = {
        "half": array(0, WIDTH, 32),
        "minus": array(1, 32, WIDTH),
        "over": array(2, WIDTH, 12),
        "of row": array(3, 12, WIDTH),
        "layers": array(4, DEPTH, WIDTH, WIDTH),
        "words": array(5, WORDS, WIDTH),
    }

    def loss(p, x):
        words, mean = jnp.argsort(x[:, :LENGTH]), x.mean()
        x = jnp.tanh(x @ (0.5 * p["half"])) @ -p["minus"]
        x = jnp.tanh(x @ (p["over"] / 3)) @ (p["of row"] * mean)
        x, _ = lax.scan(lambda x, w: (jnp.tanh(x @ (w * 0.3)), None), x, p["layers"])
        return square(x) + square(2 * p["words"][words])

    return Model(loss, params, array(6, ROWS, WIDTH), set(map("['{}']".format, params)))


def cut_up() -> Model:
    """Slices and a split of a kernel, kernels strung together, one read backwards."""
    params = {
        "sliced": array(0, WIDTH, 48),
        "middle": array(1, 40, WIDTH),
        "split": array(2, WIDTH, 3, 24),
        "strung": array(3, 24, 30),
        "on": array(4, 24, 10),
        "reversed": array(5, 40, 12),
        "padded": array(6, 10, 8),
    }

    def loss(p, x):
        x = jnp.tanh(x @ p["sliced"][:, :WIDTH]) @ p["sliced"][:, WIDTH:]
        x = x[:, :20] @ p["middle"][10:-10]
        query, key, value = jnp.split(p["split"], 3, 1)
        x = jnp.tanh(x @ query[:, 0]) * (x @ key[:, 0] + x @ value[:, 0])
        x = jnp.tanh(x @ jnp.concatenate([p["strung"], p["on"]], 1))
        x = x @ jnp.flip(p["reversed"], 0)
        return square(x @ jnp.pad(p["padded"], ((1, 1), (2, 0))))

    return Model(loss, params, array(7, ROWS, WIDTH), set(map("['{}']".format, params)))


def cut_up_in_layers() -> Model:
    """The same within a scan, and of what a scan stacks."""
    params = {"in": array(0, DEPTH, WIDTH, 2 * WIDTH), "of": array(1, DEPTH, WIDTH, 20)}

    def loss(p, x):
        def layer(x, w):
            up, down = jnp.split(w[0], 2, 1)
            return jnp.tanh(jnp.tanh(x @ up) @ down.T + x @ w[1]), None

        return square(lax.scan(layer, x, (p["in"], p["of"][:, :, 2:-2]))[0])

    return Model(loss, params, array(2, ROWS, WIDTH), {"['in']", "['of']"})


def gates() -> Model:
    """linen's fast LSTM strings the kernels of all gates together in every step."""
    from flax import linen as nn

    net, x = nn.RNN(nn.OptimizedLSTMCell(24)), array(0, ROWS, LENGTH, WIDTH)
    params = net.init(jax.random.key(0), x)
    kernels = [f"{side}{gate}" for side in "ih" for gate in "ifgo"]
    factored = {f"['params']['cell']['{name}']['kernel']" for name in kernels}
    return Model(lambda p, x: square(net.apply(p, x)), params, x, factored)


def experts() -> Model:
    """Two batch axes: experts of fixed capacity, blocks of a diagonal, an ensemble."""
    params = {
        "experts": array(0, 4, WIDTH, 24),
        "blocks": array(1, 2, 2, 6, 10),
        "several": array(2, 5, WIDTH, 24),
        "members": array(3, 5, 24, 6),
        "layers": array(4, DEPTH, 4, 24, 24),
    }

    def loss(p, x):
        sent = jnp.tanh(x[:, None, None] * jnp.arange(1.0, 5)[None, :, None, None])
        x = jnp.einsum("becd,edf->becf", sent, p["experts"])
        mix = lambda x, w: (jnp.tanh(jnp.einsum("becd,edf->becf", x, w)), None)
        x, _ = lax.scan(mix, x, p["layers"])
        parts = x.reshape(-1, 2, 2, 24)[..., :6]
        blocks = jnp.einsum("bghi,ghio->bgho", parts, p["blocks"])
        member = lambda w, v: jnp.tanh(sent[:, 0] @ w) @ v
        return square(blocks) + square(jax.vmap(member)(p["several"], p["members"]))

    return Model(loss, params, array(5, ROWS, WIDTH), set(map("['{}']".format, params)))


def one_of_several() -> Model:
    """One layer of a stack, as unrolled layers are read."""
    params = {"one": array(1, DEPTH, WIDTH, 24)}
    loss = lambda p, x: square(x @ p["one"][1])
    return Model(loss, params, array(2, ROWS, WIDTH), {"['one']"})


def scaled_along_an_axis() -> Model:
    """Columns and lines times constants or what is learned too; a learned number."""
    params = {
        "columns": array(0, WIDTH, 32),
        "lines": array(1, 32, WIDTH),
        "heads": array(2, WIDTH, 4, 8),
        "whole": array(3, 32, 12),
        "words": array(4, WORDS, 12),
        "layers": array(5, DEPTH, 12, 12),
        "s": array(6, 32),
        "t": array(7, 32),
        "of heads": array(8, 4),
        "number": jnp.float32(0.7),
        "of words": array(10, 12),
    }

    def loss(p, x):
        words = jnp.argsort(x[:, :LENGTH])
        x = jnp.tanh(x @ (p["columns"] * (p["s"] * jnp.arange(32.0))[None]))
        x = x @ (p["lines"] / (2 + jnp.tanh(p["t"]))[:, None])
        x = jnp.einsum("bd,dhk->bhk", x, p["heads"] * p["of heads"][None, :, None])
        x = jnp.tanh(x.reshape(-1, 32)) @ (p["number"] * p["whole"])
        x = x * (p["words"] * p["of words"][None])[words].sum(1)
        layer = lambda x, w: (jnp.tanh(x @ (w * jnp.arange(12.0)[None])), None)
        return square(lax.scan(layer, x, p["layers"])[0])

    names = "columns", "lines", "heads", "whole", "words", "layers"
    factored = set(map("['{}']".format, names))
    return Model(loss, params, array(11, ROWS, WIDTH), factored)


def _with_penalty(model: Model, factored: set[str]) -> Model:
    """The same with half the squares of all parameters."""
    squares = lambda p: sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(p))
    loss = lambda p, x: model.loss(p, x) + 1e-2 * squares(p)
    return model._replace(loss=loss, factored=factored)


def penalized() -> Model:
    """A penalty is the same array in every row; a tied table is in it as well."""
    return _with_penalty(transformer(), transformer().factored)


def penalized_layers() -> Model:
    """The same of layers in a scan."""
    params = {"layers": array(0, DEPTH, WIDTH, WIDTH), "out": array(1, WIDTH, 24)}

    def loss(p, x):
        x, _ = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["layers"])
        return square(x @ p["out"])

    model = Model(loss, params, array(2, ROWS, WIDTH), {"['layers']", "['out']"})
    return _with_penalty(model, model.factored)


def tied() -> Model:
    """A table that is looked up and multiplied by, for as long as it is smaller."""
    params = {"words": array(0, WORDS, WIDTH)}

    def loss(p, batch):
        x = p["words"][batch.repeat(2, 1)]  # 6 terms of 16 + 40, and 6 of 16
        return -jax.nn.log_softmax(jnp.tanh(x) @ p["words"].T)[..., 1].mean()

    return Model(loss, params, tokens(7), {"['words']"})


def tables_of_pairs() -> Model:
    """Two indices and three, one of them beyond the table; the first lines of one."""
    params = {
        "pairs": array(0, 5, 7, 12),
        "triples": array(1, 3, 4, 5, 6),
        "clipped": array(2, 5, 7, 12),
        "places": array(3, 64, 4, 3),
    }

    def loss(p, x):
        i, j, k = jnp.argsort(x, 1)[:, :9].reshape(-1, 3, 3).transpose(2, 0, 1) % 7
        y = p["pairs"].at[i - 1, j].get(mode="fill", fill_value=0)
        z = p["clipped"].at[i, j].get(mode="clip")
        triple = p["triples"][i % 3, j % 4, k % 5]
        y = jnp.tanh(y + z + p["places"][2:5].reshape(1, 3, 12))
        return square(y) + square(triple)

    return Model(loss, params, array(5, ROWS, WIDTH), set(map("['{}']".format, params)))


USED_OTHERWISE = {
    model.__name__: model
    for model in (
        *(look_up_by_vmap, times_a_number, cut_up, cut_up_in_layers),
        *(gates, experts, one_of_several, scaled_along_an_axis),
        *(penalized, penalized_layers, tied, tables_of_pairs),
    )
}
