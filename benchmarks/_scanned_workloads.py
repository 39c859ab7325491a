"""Models whose layers or steps are in ``lax.scan``, as plain as the others."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _workloads
from benchmarks._workloads import Batch, Workload


def layers(batch_size: int = 64, depth: int = 8, width: int = 1024) -> Workload:
    """Dense layers of one width, scanned, and the squared length of what comes out."""
    rng = np.random.default_rng(0)
    kernels = rng.standard_normal((depth, width, width)) / width**0.5

    def loss(params: Any, batch: Batch) -> jax.Array:
        layer = lambda x, kernel: (jnp.tanh(x @ kernel), None)
        return _error(jax.lax.scan(layer, batch[0], params["kernels"])[0], batch[1])

    batch = _batch(rng, (batch_size, width), (batch_size, width))
    return Workload("layers", loss, {"kernels": _float32(kernels)}, batch)


def lstm(batch_size: int = 32, length: int = 32, width: int = 256) -> Workload:
    """A recurrent network: the same kernels in every step."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: _float32(rng.standard_normal(shape) / width**0.5)
    params = {"x": draw(width, 4 * width), "h": draw(width, 4 * width)}
    params["b"] = jnp.zeros(4 * width)

    def loss(params: Any, batch: Batch) -> jax.Array:
        inputs, targets = batch

        def step(carry: Any, x: jax.Array) -> tuple[Any, None]:
            h, c = carry
            gates = x @ params["x"] + h @ params["h"] + params["b"]
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        zeros = jnp.zeros_like(inputs[:, 0])
        (h, _), _ = jax.lax.scan(step, (zeros, zeros), inputs.swapaxes(0, 1))
        return _error(h, targets)

    batch = _batch(rng, (batch_size, length, width), (batch_size, width))
    return Workload("lstm", loss, params, batch)


def workload(name: str, smoke: bool = False) -> Workload:
    """One of ``NAMES``, at full size or so small that it runs at once."""
    if name == "transformer":
        sizes = _workloads.SMOKE_SIZES[name] if smoke else {}
        return _workloads.transformer(**sizes, scanned=True)
    small = {"layers": {"depth": 2}, "lstm": {"length": 4}}[name]
    sizes = {"batch_size": 8, "width": 32, **small} if smoke else {}
    return {"layers": layers, "lstm": lstm}[name](**sizes)


NAMES = ("layers", "transformer", "lstm")


def _float32(array: Any) -> jax.Array:
    return jnp.asarray(array, jnp.float32)


def _batch(rng: np.random.Generator, *shapes: tuple[int, ...]) -> Any:
    return tuple(_float32(rng.standard_normal(shape)) for shape in shapes)


def _error(x: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.mean((x - target) ** 2)
