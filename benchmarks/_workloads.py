"""The models that everything is measured on: plain functions of (params, batch).

Each is an ordinary mean loss, as a user would write it; nothing in it knows about
examples. ``benchmarks/_torch_models.py`` has the same three for torch.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Batch = tuple[jax.Array, jax.Array]


class Workload(NamedTuple):
    """One model with data.

    Attributes:
      name: how results call it.
      loss: (params, batch) to the mean loss.
      params: pytree of float32 arrays.
      batch: (inputs, labels), both with a leading example axis.
    """

    name: str
    loss: Callable[[Any, Batch], jax.Array]
    params: Any
    batch: Batch

    @property
    def batch_size(self) -> int:
        """B: here every example is a row."""
        return self.batch[0].shape[0]

    @property
    def param_bytes(self) -> int:
        """Bytes of all parameters."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.params))

    def agreeing(self) -> Workload:
        """The same with the first example in every place: all rows are equal.

        The worst case for a fold that may stop once no coordinate is left.
        """
        first = lambda x: jnp.repeat(x[:1], x.shape[0], axis=0)
        return self._replace(batch=jax.tree.map(first, self.batch))


def mlp(
    batch_size: int = 64, width: int = 1024, inputs: int = 784, classes: int = 10
) -> Workload:
    """Three dense layers, inputs-width-width-classes."""
    rng = np.random.default_rng(0)
    sizes = [inputs, width, width, classes]
    params = [
        {"kernel": _normal(rng, m, n, scale=m**-0.5), "bias": jnp.zeros(n)}
        for m, n in itertools.pairwise(sizes)
    ]

    def loss(params: Any, batch: Batch) -> jax.Array:
        x, labels = batch
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
        return _cross_entropy(x @ params[-1]["kernel"] + params[-1]["bias"], labels)

    x = _normal(rng, batch_size, inputs)
    return Workload("mlp", loss, params, (x, _labels(rng, classes, batch_size)))


def cnn(
    batch_size: int = 64,
    channels: tuple[int, ...] = (32, 64, 64),
    side: int = 28,
    classes: int = 10,
) -> Workload:
    """3x3 convolutions with GroupNorm, each but the last halving the image."""
    rng = np.random.default_rng(0)
    sizes = (1, *channels)
    blocks = [
        {
            "kernel": _normal(rng, 3, 3, m, n, scale=(9 * m) ** -0.5),
            "bias": jnp.zeros(n),
            "norm": {"scale": jnp.ones(n), "bias": jnp.zeros(n)},
        }
        for m, n in itertools.pairwise(sizes)
    ]
    last = channels[-1]
    head = {
        "kernel": _normal(rng, last, classes, scale=last**-0.5),
        "bias": jnp.zeros(classes),
    }

    def loss(params: Any, batch: Batch) -> jax.Array:
        x, labels = batch
        for index, block in enumerate(params["blocks"]):
            x = jax.lax.conv_general_dilated(
                x,
                block["kernel"],
                (1, 1) if index == 0 else (2, 2),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            x = jax.nn.relu(_group_norm(block["norm"], x + block["bias"], groups=8))
        x = x.mean((1, 2))
        return _cross_entropy(
            x @ params["head"]["kernel"] + params["head"]["bias"], labels
        )

    x = _normal(rng, batch_size, side, side, 1)
    params = {"blocks": blocks, "head": head}
    return Workload("cnn", loss, params, (x, _labels(rng, classes, batch_size)))


def transformer(
    batch_size: int = 32,
    layers: int = 4,
    dim: int = 256,
    heads: int = 4,
    length: int = 64,
    vocabulary: int = 96,
    scanned: bool = False,
) -> Workload:
    """A decoder: pre-LN, causal attention, learned positions, untied readout.

    ``scanned``: the layers stacked, in ``lax.scan``.
    """
    rng = np.random.default_rng(0)
    norm = lambda: {"scale": jnp.ones(dim), "bias": jnp.zeros(dim)}
    dense = lambda m, n: {
        "kernel": _normal(rng, m, n, scale=m**-0.5),
        "bias": jnp.zeros(n),
    }
    params = {
        "embedding": _normal(rng, vocabulary, dim, scale=0.02),
        "positions": _normal(rng, length, dim, scale=0.02),
        "layers": [
            {
                "norm_1": norm(),
                "qkv": dense(dim, 3 * dim),
                "out": dense(dim, dim),
                "norm_2": norm(),
                "up": dense(dim, 4 * dim),
                "down": dense(4 * dim, dim),
            }
            for _ in range(layers)
        ],
        "norm": norm(),
        "readout": dense(dim, vocabulary),
    }

    def attention(layer: Any, x: jax.Array) -> jax.Array:
        split = lambda z: z.reshape(*z.shape[:2], heads, -1)
        q, k, v = map(split, jnp.split(_dense(layer["qkv"], x), 3, axis=-1))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None]
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e30))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return _dense(layer["out"], mixed.reshape(x.shape))

    def block(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        x = x + attention(layer, _layer_norm(layer["norm_1"], x))
        hidden = jax.nn.gelu(_dense(layer["up"], _layer_norm(layer["norm_2"], x)))
        return x + _dense(layer["down"], hidden), None

    if scanned:
        stack = lambda *leaves: jnp.stack(leaves)
        params |= {"layers": jax.tree.map(stack, *params["layers"])}

    def loss(params: Any, batch: Batch) -> jax.Array:
        tokens, targets = batch
        x = params["embedding"][tokens] + params["positions"][None, : tokens.shape[1]]
        if scanned:
            x, _ = jax.lax.scan(block, x, params["layers"])
        else:
            x = functools.reduce(
                lambda x, layer: block(x, layer)[0], params["layers"], x
            )
        return _cross_entropy(
            _dense(params["readout"], _layer_norm(params["norm"], x)), targets
        )

    tokens = _labels(rng, vocabulary, batch_size, length + 1)
    return Workload("transformer", loss, params, (tokens[:, :-1], tokens[:, 1:]))


def workload(name: str, smoke: bool = False) -> Workload:
    """One of the three by name, at full size or so small that it runs at once."""
    sizes = SMOKE_SIZES[name] if smoke else {}
    return {"mlp": mlp, "cnn": cnn, "transformer": transformer}[name](**sizes)


SMOKE_SIZES: dict[str, dict[str, Any]] = {
    "mlp": {"batch_size": 8, "width": 16, "inputs": 12},
    "cnn": {"batch_size": 8, "channels": (8, 8, 8), "side": 8},
    "transformer": {
        "batch_size": 8,
        "layers": 1,
        "dim": 16,
        "heads": 2,
        "length": 8,
        "vocabulary": 11,
    },
}
NAMES = tuple(SMOKE_SIZES)


def _normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)


def _labels(rng: np.random.Generator, classes: int, *shape: int) -> jax.Array:
    return jnp.asarray(rng.integers(0, classes, shape), jnp.int32)


def _dense(layer: Any, x: jax.Array) -> jax.Array:
    return x @ layer["kernel"] + layer["bias"]


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, labels[..., None], axis=-1).mean()


def _layer_norm(layer: Any, x: jax.Array) -> jax.Array:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * layer["scale"] + layer["bias"]


def _group_norm(layer: Any, x: jax.Array, groups: int) -> jax.Array:
    grouped = x.reshape(*x.shape[:-1], groups, -1)
    mean = grouped.mean((1, 2, 4), keepdims=True)
    variance = grouped.var((1, 2, 4), keepdims=True)
    normed = (grouped - mean) * jax.lax.rsqrt(variance + 1e-5)
    return normed.reshape(x.shape) * layer["scale"] + layer["bias"]
