"""What does a step of a large decoder need on many chips? Compiled; nothing is run.

    python -m benchmarks.scale --targets v5e:4x4 --contestants plain sign_consensus

1.1 billion parameters on 16 TPU v5e, 7.2 on 64 v5p and on 8 H100, in the environments
of ``make aot-tpu`` and ``make aot-cuda``. Parameters and batch are cut along all chips;
a row is the gradient of one chip's sequences, so there are as many rows as chips, and
they are reduced inside of the backward pass; "held" ones are dealt out there, and stay
until the rule has looked at them. Rows of other targets and contestants stay
in the results. ``--smoke`` compiles a small one for the CPU's devices.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

import consensus_optax as co
from benchmarks import _flops, _harness, _llama, _targets, _traffic
from benchmarks._harness import Row
from benchmarks._llama import AXIS, Model

REDUCERS: dict[str, Callable[[int], Any]] = {
    "clip and mean": lambda count: co.clipped_sum(1.0, divisor=count),
    "sign_consensus": lambda _: co.sign_consensus(),
    "cosine_filter": lambda _: co.cosine_filter(0.97),
    "median": lambda _: co.median(),
}
_HELD = ", held"
CONTESTANTS = (
    "plain",
    "clip and mean",
    f"clip and mean{_HELD}",
    "sign_consensus",
    "cosine_filter",
    f"cosine_filter{_HELD}",
    "median",
)
_LARGE = Model(32, 4096, 14336, 32, 8, 32000, 2048, 4)
MODELS = {
    "v5e:4x4": Model(16, 2048, 8192, 32, 8, 32768, 2048, 4),
    "v5p:4x4x4": _LARGE,
    "h100:1x1x8": _LARGE,
    "cpu": Model(2, 64, 128, 4, 2, 512, 64, 2),
}
_KEY = ("target", "contestant")


def step_of(model: Model, name: str, mesh: Any) -> Callable[..., Any]:
    """(params, tokens) to the loss of all and an update."""
    loss = _llama.loss_of(model)
    if name == "plain":
        return jax.value_and_grad(loss)
    reducer = REDUCERS[name.removesuffix(_HELD)](mesh.size)
    cut = _llama.specs(_llama.shapes(model))
    rule = co.sharded(reducer, AXIS, mesh=mesh, param_specs=cut)
    step = co.value_and_reduced_grad(
        loss, rule, group_size=model.sequences, hold_rows=name.endswith(_HELD)
    )
    return lambda params, tokens: step(params, tokens, state=reducer.init(params))[:2]


def facts(target: str, model: Model, name: str) -> Row:
    """What XLA planned for one chip."""
    mesh = _targets.mesh(target, AXIS)
    shapes = _llama.shapes(model)
    place = lambda shape, spec: jax.ShapeDtypeStruct(
        shape.shape, shape.dtype, sharding=NamedSharding(mesh, spec)
    )
    params = jax.tree.map(place, shapes, _llama.specs(shapes))
    rows = mesh.size * model.sequences
    tokens = jax.ShapeDtypeStruct((rows, model.length + 1), jnp.int32)
    tokens = place(tokens, PartitionSpec(AXIS))
    cuts = jax.tree.map(lambda leaf: leaf.sharding, params)
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        step = jax.jit(step_of(model, name, mesh), out_shardings=(None, cuts))
        traced = step.trace(params, tokens)
        lowered = traced.lower()
        known = _compiled(lowered, mesh.size)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    # parameters, update and two moments of Adam
    state = 16 * count // mesh.size
    return {
        "params": count,
        "chips": mesh.size,
        **model._asdict(),
        "compile_s": round(time.perf_counter() - start, 1),
        "flops": _flops.of_products(traced.jaxpr.jaxpr, 1) / mesh.size,
        "state_bytes": state,
        "hbm_bytes": _targets.memory(target),
        **known,
    }


def _compiled(lowered: Any, chips: int) -> Row:
    """What the compiled program says; of one that does not fit, why."""
    try:
        executable, program = _targets.program(lowered.compile)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"error": str(error).splitlines()[0][:200], "temp_bytes": None}
    hlo = executable.as_text()
    return {
        "temp_bytes": executable.memory_analysis().temp_size_in_bytes,
        "bytes_sent": _traffic.bytes_in_turns(hlo, chips),
        "cycles": program.least["cycles"] or None,
        "bundles": program.least["bundles"] or None,
        "trips": program.trips,
    }


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """Each to the plain step of its target, where that is known."""
    plain = {row["target"]: row for row in rows if row["contestant"] == "plain"}
    keys = ("temp_bytes", "bytes_sent", "flops", "cycles", "bundles")

    def related(row: Row) -> Row:
        base = plain.get(row["target"], {})
        ratios = {
            f"{key}_ratio": round(row[key] / base[key], 3)
            for key in keys
            if row.get(key) and base.get(key)
        }
        return {**row, **ratios}

    return list(map(related, rows))


def table(rows: Sequence[Row], target: str) -> str:
    """Markdown of one target."""
    chosen = [row for row in rows if row["target"] == target]
    size = f"{chosen[0]['params'] / 1e9:.1f}B on {target}"
    heads = ["temporary, GiB", "with state, GiB", "fits", "sent, GB"]
    heads += ["memory / plain", "sent / plain", "flops / plain"]
    on_tpu = any(row.get("cycles") for row in chosen)
    heads += ["bundles / plain", "cycles / plain"] if on_tpu else []
    lines = [f"| {size} | " + " | ".join(heads) + " | compiled in s |"]
    lines += ["|---" * (len(heads) + 2) + "|"]
    for row in chosen:
        whole = (row["temp_bytes"] or 0) + row["state_bytes"]
        ratio = lambda key, row=row: _two_places(row.get(f"{key}_ratio"))
        if row["temp_bytes"] is None:
            cells = [row["error"], "", "no", "", "", "", ratio("flops")]
        else:
            cells = [
                f"{row['temp_bytes'] / 2**30:.2f}",
                f"{whole / 2**30:.2f}",
                "yes" if whole <= (row["hbm_bytes"] or whole) else "no",
                f"{row['bytes_sent'] / 1e9:.2f}",
                *map(ratio, ("temp_bytes", "bytes_sent", "flops")),
            ]
        cells += [ratio("bundles"), ratio("cycles")] if on_tpu else []
        cells += [f"{row['compile_s']:.0f}"]
        lines.append(f"| {row['contestant']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _two_places(number: float | None) -> str:
    return "" if number is None else f"{number:.2f}"


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Rows in a fixed order; the new ones in the place of the same old ones."""
    by_key = {tuple(row[key] for key in _KEY): row for row in (*old, *new)}
    targets = list(MODELS)
    place = lambda row: (
        targets.index(row["target"]),
        CONTESTANTS.index(row["contestant"]),
    )
    return with_ratios(sorted(by_key.values(), key=place))


def main(argv: Sequence[str] | None = None) -> None:
    """Writes ``scale.json`` and ``scale.md``, after every row."""
    options = _harness.parser(__doc__)
    options.add_argument("--targets", nargs="+", choices=tuple(MODELS))
    options.add_argument("--contestants", nargs="+", choices=CONTESTANTS)
    args = _harness.parse(options, argv)
    large = [x for x in _targets.clusters() if x in MODELS]
    targets = ["cpu"] if args.smoke else args.targets or large
    if not targets:
        raise SystemExit("nothing to compile with: `make aot-cuda` or `make aot-tpu`")
    for target in targets:
        about = _targets.versions(target)
        for name in args.contestants or CONTESTANTS:
            row = {"benchmark": "scale", "target": target, "contestant": name}
            row |= facts(target, MODELS[target], name) | about
            rows = merged(_harness.read("scale", args.out), [row])
            _harness.show(row)
            _harness.write("scale", rows, {}, args.out)
            tables = [table(rows, x) for x in dict.fromkeys(r["target"] for r in rows)]
            text = "\n\n".join(tables) + "\n"
            (args.out / "scale.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
