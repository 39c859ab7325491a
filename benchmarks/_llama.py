"""A decoder as Llama is, layers scanned and recomputed, for programs on many devices.

Masters in float32, computation in bfloat16, parameters cut along the same mesh axis as
the batch (FSDP). Constraints say how activations are cut, as MaxText says it: without
them the compiler gathers activations of a whole batch to multiply them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

AXIS = "data"
_QUERIES = 512  # that attend at a time, so that no (T, T) scores of a layer are held
_NARROW = jnp.bfloat16


class Model(NamedTuple):
    """Sizes of a decoder, and of what each device trains it on at a time."""

    depth: int
    width: int
    inner: int
    heads: int
    key_heads: int
    vocabulary: int
    length: int
    sequences: int  # of each device, together one row


def shapes(model: Model) -> dict[str, Any]:
    """Shapes of the parameters, those of all layers stacked."""
    shape = lambda *sides: jax.ShapeDtypeStruct(sides, jnp.float32)
    layers = functools.partial(shape, model.depth)
    width, keys = model.width, model.width // model.heads * model.key_heads
    return {
        "layers": {
            "q": layers(width, width),
            "k": layers(width, keys),
            "v": layers(width, keys),
            "o": layers(width, width),
            "gate": layers(width, model.inner),
            "up": layers(width, model.inner),
            "down": layers(model.inner, width),
            "norm_1": layers(width),
            "norm_2": layers(width),
        },
        "embedding": shape(model.vocabulary, width),
        "readout": shape(width, model.vocabulary),
        "norm": shape(width),
    }


def specs(params: Any) -> Any:
    """How parameters are cut: each in its first axis after that of the layers."""
    of_leaf = lambda layered, leaf: PartitionSpec(*[None] * layered, AXIS)
    of_layers = jax.tree.map(functools.partial(of_leaf, 1), params["layers"])
    rest = {name: leaf for name, leaf in params.items() if name != "layers"}
    return {"layers": of_layers, **jax.tree.map(functools.partial(of_leaf, 0), rest)}


def loss_of(model: Model) -> Callable[[Any, jax.Array], jax.Array]:
    """Mean loss of the next token, of tokens (B, T + 1)."""
    side = model.width // model.heads

    def cut(x: jax.Array) -> jax.Array:
        spec = PartitionSpec(AXIS, *[None] * (x.ndim - 1))
        return jax.lax.with_sharding_constraint(x, spec)

    def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        size = jax.lax.rsqrt((wide * wide).mean(-1, keepdims=True) + 1e-5)
        return (wide * size * scale).astype(_NARROW)

    def turned(x: jax.Array) -> jax.Array:
        """Rotated by its place, (B, T, heads, side)."""
        place = jnp.arange(x.shape[1], dtype=jnp.float32)[:, None]
        angle = place * 1e4 ** (-jnp.arange(0, side, 2, dtype=jnp.float32) / side)
        cos, sin = (f(angle)[:, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
        a, b = jnp.split(x, 2, -1)
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

    def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        batch, length = q.shape[:2]
        some = min(_QUERIES, length)
        shared = model.heads // model.key_heads

        @jax.checkpoint
        def of_some(given: tuple[jax.Array, jax.Array]) -> jax.Array:
            q, start = given
            scores = jnp.einsum(
                "bthgk,bshk->bhgts", q, k, preferred_element_type=jnp.float32
            )
            seen = start + jnp.arange(some)[:, None] >= jnp.arange(length)[None]
            scores = jnp.where(seen, scores * side**-0.5, -1e30)
            weights = jax.nn.softmax(scores, -1).astype(_NARROW)
            return jnp.einsum("bhgts,bshk->bthgk", weights, v)

        parts = q.reshape(batch, -1, some, model.key_heads, shared, side)
        starts = jnp.arange(0, length, some)
        mixed = jax.lax.map(of_some, (parts.swapaxes(0, 1), starts))
        return mixed.swapaxes(0, 1).reshape(batch, length, model.width)

    @jax.checkpoint
    def block(x: jax.Array, masters: Any) -> tuple[jax.Array, None]:
        is_matrix = lambda leaf: leaf.ndim == 2
        p = {
            name: leaf.astype(_NARROW) if is_matrix(leaf) else leaf
            for name, leaf in masters.items()
        }
        heads = lambda y: y.reshape(*y.shape[:2], -1, side)
        y = norm(cut(x), p["norm_1"])
        q, k, v = (cut(heads(y @ p[name])) for name in "qkv")
        x = cut(x + cut(attention(turned(q), turned(k), v)) @ p["o"])
        y = norm(x, p["norm_2"])
        inner = cut(jax.nn.silu(cut(y @ p["gate"])) * cut(y @ p["up"]))
        return cut(x + inner @ p["down"]), None

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        x = cut(params["embedding"].astype(_NARROW)[tokens[:, :-1]])
        x, _ = jax.lax.scan(block, x, params["layers"])
        logits = jnp.einsum(
            "btd,dv->btv",
            norm(x, params["norm"]),
            params["readout"].astype(_NARROW),
            preferred_element_type=jnp.float32,
        )
        logits = cut(logits)
        own = jnp.take_along_axis(logits, tokens[:, 1:, None], -1)[..., 0]
        return (jax.nn.logsumexp(logits, -1) - own).mean()

    return loss
