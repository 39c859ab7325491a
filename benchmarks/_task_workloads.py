"""Models with several losses, by name: two heads and more, a PINN, several rewards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks._workloads import Workload

Losses = dict[str, jax.Array]


def heads(
    batch_size: int = 64, inputs: int = 256, width: int = 1024, num_heads: int = 3
) -> Workload:
    """A trunk of two layers, and for every loss a head of its own."""
    keys = jax.random.split(jax.random.key(0), 4 + 2 * num_heads)
    names = [f"head {i}" for i in range(num_heads)]
    params = {
        "trunk": [_dense(keys[0], inputs, width), _dense(keys[1], width, width)],
        **{
            name: [
                _dense(keys[4 + 2 * i], width, width // 4),
                _dense(keys[5 + 2 * i], width // 4, 1),
            ]
            for i, name in enumerate(names)
        },
    }
    x = jax.random.normal(keys[2], (batch_size, inputs))
    y = jax.random.normal(keys[3], (batch_size, num_heads))

    def losses(params: Any, batch: Any) -> Losses:
        x, targets = batch
        features = _mlp([*params["trunk"]], x, last=jnp.tanh)
        return {
            name: jnp.mean((_mlp(params[name], features)[:, 0] - targets[:, i]) ** 2)
            for i, name in enumerate(names)
        }

    return Workload("heads", losses, params, (x, y))


def pinn(num_points: int = 1024, num_edge: int = 128, width: int = 64) -> Workload:
    """Burgers' equation, u_t + u u_x = 0.01 u_xx: residual, boundary, initial value."""
    keys = jax.random.split(jax.random.key(0), 8)
    sizes = [2, *[width] * 4, 1]
    params = [_dense(keys[i], *sizes[i : i + 2]) for i in range(5)]
    inside = jax.random.uniform(keys[5], (num_points, 2), minval=-1.0)
    times = jax.random.uniform(keys[6], (num_edge,), minval=-1.0)
    places = jax.random.uniform(keys[7], (num_edge,), minval=-1.0)
    edge = jnp.stack([times, jnp.sign(places)], 1)
    start = jnp.stack([-jnp.ones(num_edge), places], 1)

    def losses(params: Any, batch: Any) -> Losses:
        inside, edge, start = batch
        value = lambda point: _mlp(params, point)[0]

        def residual(point: jax.Array) -> jax.Array:
            in_x = lambda point: jax.grad(value)(point)[1]
            slope, curvature = jax.grad(value)(point), jax.grad(in_x)(point)[1]
            return slope[0] + value(point) * slope[1] - 0.01 * curvature

        mean_square = lambda x: jnp.mean(jnp.square(x))
        known = -jnp.sin(jnp.pi * start[:, 1])
        return {
            "residual": mean_square(jax.vmap(residual)(inside)),
            "boundary": mean_square(jax.vmap(value)(edge)),
            "initial": mean_square(jax.vmap(value)(start) - known),
        }

    return Workload("pinn", losses, params, (inside, edge, start))


def rewards(
    batch_size: int = 32,
    length: int = 16,
    width: int = 256,
    words: int = 96,
    num_rewards: int = 4,
) -> Workload:
    """The policy gradient of every reward, with advantages within the group (GRPO)."""
    keys = jax.random.split(jax.random.key(0), 6)
    params = {
        "embed": 0.1 * jax.random.normal(keys[0], (words, width)),
        "layers": [_dense(keys[1], 2 * width, width), _dense(keys[2], width, width)],
        "out": _dense(keys[3], width, words),
    }
    tokens = jax.random.randint(keys[4], (batch_size, length + 2), 0, words)
    scores = jax.random.normal(keys[5], (batch_size, num_rewards))

    def losses(params: Any, batch: Any) -> jax.Array:
        tokens, scores = batch
        seen = params["embed"][tokens[:, :-1]]
        context = jnp.concatenate([seen[:, :-1], seen[:, 1:]], -1)
        logits = _mlp([*params["layers"], params["out"]], context)
        logs = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(logs, tokens[:, 2:, None], -1)[..., 0]
        advantages = (scores - scores.mean(0)) / (scores.std(0) + 1e-6)
        return -jnp.einsum("bt,bk->k", chosen, advantages) / chosen.size

    return Workload("rewards", losses, params, (tokens, scores))


def _dense(key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
    kernel = jax.random.normal(key, (inputs, outputs)) / jnp.sqrt(inputs)
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def _mlp(
    layers: list[Any],
    x: jax.Array,
    last: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> jax.Array:
    for index, layer in enumerate(layers):
        x = x @ layer["kernel"] + layer["bias"]
        x = jnp.tanh(x) if index < len(layers) - 1 else last(x)
    return x


_MAKERS: dict[str, Callable[..., Workload]] = {
    "heads": heads,
    "pinn": pinn,
    "rewards": rewards,
}
_SMOKE: dict[str, dict[str, int]] = {
    "heads": {"batch_size": 4, "inputs": 8, "width": 16},
    "pinn": {"num_points": 16, "num_edge": 4, "width": 8},
    "rewards": {"batch_size": 4, "length": 3, "width": 8, "words": 12},
}
NAMES = tuple(_MAKERS)


def workload(name: str, smoke: bool = False) -> Workload:
    """A workload by name, tiny for smoke tests."""
    return _MAKERS[name](**_SMOKE[name] if smoke else {})
