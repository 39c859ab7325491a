"""What memory does a step need where factors are larger than the rows they make?

    python -m benchmarks.long_sequences

Nothing is run: XLA's own plan of each compiled step says how many temporary bytes it
needs, the traced program how many operations its matrix products take. A decoder whose
layers are scanned and checkpointed, at lengths from half of its width on; rows held,
and reduced inside of the backward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import consensus_optax as co
from benchmarks import _flops, _harness
from benchmarks._harness import Row

DEPTH, VOCABULARY, QUERIES = 8, 512, 128  # queries that attend at a time
REDUCERS = {
    "sign_consensus": co.sign_consensus,
    "sign_consensus(quorum=0.8)": lambda: co.sign_consensus(0.8),
    "normalized_mean": co.normalized_mean,
    "cosine_filter": lambda: co.cosine_filter(0.97),
}
WAYS = {"inside": False, "held": True}


class Size(NamedTuple):
    """Rows, length of a sequence, width."""

    rows: int
    length: int
    width: int


SIZES = (Size(16, 512, 512), Size(8, 2048, 512))
SMOKE_SIZES = (Size(4, 32, 32),)


def decoder(width: int) -> tuple[Callable[..., Any], Any]:
    """The loss of a decoder as Llama is, and the shapes of its parameters."""
    shape = lambda *sides: jax.ShapeDtypeStruct(sides, jnp.float32)
    square, wide = shape(DEPTH, width, width), shape(DEPTH, width, 4 * width)
    params = dict.fromkeys(("q", "k", "v", "o"), square)
    params |= {"gate": wide, "up": wide, "down": shape(DEPTH, 4 * width, width)}
    params |= dict.fromkeys(("norm_1", "norm_2"), shape(DEPTH, width))
    ends = {"embedding": shape(VOCABULARY, width), "readout": shape(width, VOCABULARY)}

    def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale

    def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Some queries at a time, so that no (T, T) scores of a layer are held."""

        @jax.checkpoint
        def some(q: jax.Array) -> jax.Array:
            scores = jnp.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5
            return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores, -1), v)

        some_each = min(QUERIES, q.shape[1])
        apart = q.reshape(q.shape[0], -1, some_each, *q.shape[2:]).swapaxes(0, 1)
        return jax.lax.map(some, apart).swapaxes(0, 1).reshape(q.shape)

    @jax.checkpoint
    def block(x: jax.Array, p: Any) -> tuple[jax.Array, None]:
        heads = lambda y: y.reshape(*y.shape[:2], -1, 32)
        y = norm(x, p["norm_1"])
        mixed = attention(*(heads(y @ p[name]) for name in "qkv"))
        x = x + mixed.reshape(x.shape) @ p["o"]
        y = norm(x, p["norm_2"])
        return x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"], None

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        x = params["embedding"][tokens[:, :-1]]
        x, _ = jax.lax.scan(block, x, params["layers"])
        logs = jax.nn.log_softmax(x @ params["readout"])
        return -jnp.take_along_axis(logs, tokens[:, 1:, None], -1).mean()

    return loss, {"layers": params, **ends}


def run(size: Size) -> list[Row]:
    """The plain step and every reducer both ways."""
    loss, params = decoder(size.width)
    tokens = jax.ShapeDtypeStruct((size.rows, size.length + 1), jnp.int32)
    facts = functools.partial(_facts, params, tokens)
    param_bytes = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    plain = facts(jax.value_and_grad(loss))
    rows = [{"contestant": "plain", **plain}]
    for name, make in REDUCERS.items():
        for way, hold in WAYS.items():
            reducer = make()
            step = co.value_and_reduced_grad(loss, reducer, hold_rows=hold)
            first = lambda params, tokens, step=step, reducer=reducer: step(
                params, tokens, state=reducer.init(params)
            )
            rows.append({"contestant": f"{name} [{way}]", **facts(first)})
    common = {"benchmark": "long_sequences", **size._asdict(), "baseline": "plain"}
    for row in rows:
        row |= common | {
            "param_bytes": param_bytes,
            "memory_ratio": round(row["temp_bytes"] / plain["temp_bytes"], 3),
            "flops_ratio": round(row["flops"] / plain["flops"], 3),
        }
        _harness.show(row)
    return rows


def _facts(params: Any, tokens: Any, step: Callable[..., Any]) -> Row:
    traced = jax.jit(step).trace(params, tokens)
    plan = traced.lower().compile().memory_analysis()
    turns = -(-(tokens.shape[0] - 1) // 2)  # of a fold, two rows each
    flops = _flops.of_products(traced.jaxpr.jaxpr, turns)
    return {"temp_bytes": plan.temp_size_in_bytes, "flops": flops}


def table(rows: Sequence[Row]) -> str:
    """Markdown: temporary memory and operations to the plain step."""
    key = lambda row: (row["rows"], row["length"], row["width"])
    sizes = list(dict.fromkeys(map(key, rows)))
    cells = {(row["contestant"], key(row)): row for row in rows}
    heads = ["B = {}, T = {}, d = {}".format(*size) for size in sizes]
    title = "temporary memory; operations of products, to plain"
    lines = [
        f"| {title} | " + " | ".join(heads) + " |",
        "|---" * (len(sizes) + 1) + "|",
    ]
    for name in dict.fromkeys(row["contestant"] for row in rows):
        each = [cells[name, size] for size in sizes]
        texts = [f"{x['memory_ratio']:.2f}; {x['flops_ratio']:.2f}" for x in each]
        if name == "plain":
            texts = [f"{x['temp_bytes'] / x['param_bytes']:.1f} P" for x in each]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes ``long_sequences.json`` and ``long_sequences.md``."""
    args = _harness.parse(_harness.parser(__doc__), argv)
    rows = [row for size in (SMOKE_SIZES if args.smoke else SIZES) for row in run(size)]
    _harness.write("long_sequences", rows, _harness.environment(), args.out)
    (args.out / "long_sequences.md").write_text(table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
