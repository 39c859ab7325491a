"""What does a step take on a GPU, and did its compiled program tell?

    python -m benchmarks.gpu --workload mlp transformer --graphs

Steps are started one after the other as a training loop starts them, without waiting in
between, so that what counts is the slower of device and host. What the device itself
is busy with is its profiler's record of other runs of the same programs. ``decoder`` is
a language model of 1.1 billion parameters that takes 8 rows of 2048 tokens, reduced
inside of the backward pass, or held. With ``--graphs`` conditionals and loops are in
CUDA graphs, so that the device does not wait for the host to decide. Rows of other
models, and those with graphs or without, stay in the results.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import consensus_optax as co
from benchmarks import (
    _harness,
    _llama,
    _programs,
    _steps,
    _workloads,
    accelerators,
    scale,
)
from benchmarks._harness import Contestant, Row

CALLS = 10  # steps under way at a time
DECODER = "decoder"
ROWS = 8
NAMES = (*_workloads.NAMES, DECODER)
GRAPHS = "--xla_gpu_enable_command_buffer=+CONDITIONAL,+WHILE"
_NUMBER = re.compile(r"[._]\d+")  # of a kernel: the same kind has many
_KEY = ("workload", "regime", "contestant", "graphs")


class Job(NamedTuple):
    """The steps of one model, and what they are given in each regime."""

    name: str
    param_bytes: int
    batch_size: int
    steps: dict[str, Callable[..., Any]]
    given: dict[str, tuple[Any, Any]]
    mesh: Any = None


def job(name: str, smoke: bool) -> Job:
    """One model, or the decoder."""
    if name == DECODER:
        return decoder(smoke)
    work = _workloads.workload(name, smoke)
    steps = dict(accelerators.steps(work, list(accelerators.REDUCERS)))
    steps |= {
        accelerators.BY_HAND: _steps.stacked_min_max(work),
        "vmap(grad), Gramian": _steps.stacked_gramian(work),
    }
    given = {"disagreeing": work, "agreeing": work.agreeing()}
    return Job(
        name,
        work.param_bytes,
        work.batch_size,
        steps,
        {key: (data.params, data.batch) for key, data in given.items()},
    )


def decoder(smoke: bool) -> Job:
    """Rows are sequences, none of which is held."""
    model = scale.MODELS["cpu" if smoke else "v5e:4x4"]
    loss = _llama.loss_of(model)
    shapes = _llama.shapes(model)
    leaves, tree = jax.tree.flatten(shapes)
    keys = tree.unflatten(jax.random.split(jax.random.key(0), len(leaves)))
    draw = lambda key, leaf: jax.random.normal(key, leaf.shape) / leaf.shape[-1] ** 0.5
    params = jax.jit(lambda: jax.tree.map(draw, keys, shapes))()
    rng = np.random.default_rng(0)
    text = rng.integers(0, model.vocabulary, (ROWS, model.length + 1))
    tokens = jnp.asarray(text, jnp.int32)

    def of_rule(reducer: Any, held: bool) -> Callable[..., Any]:
        step = co.value_and_reduced_grad(loss, reducer, hold_rows=held)
        return lambda p, t: step(p, t, state=reducer.init(p))[:2]

    rules = {name: make(ROWS) for name, make in scale.REDUCERS.items()}
    rules["normalized_mean"] = co.normalized_mean()
    steps = {"plain": jax.value_and_grad(loss)}
    steps |= {name: of_rule(rule, held=False) for name, rule in rules.items()}
    two_passes = ("clip and mean", "cosine_filter")
    steps |= {f"{x}, held": of_rule(rules[x], held=True) for x in two_passes}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    device = np.array(jax.devices()[:1])
    mesh = jax.sharding.Mesh(
        device, (_llama.AXIS,), axis_types=(jax.sharding.AxisType.Auto,)
    )
    return Job(DECODER, size, ROWS, steps, {"random": (params, tokens)}, mesh)


def contestants(job: Job, threads: int, names: Sequence[str] = ()) -> list[Contestant]:
    """All steps, or the plain one and some, compiled; with what their programs say."""
    first = next(iter(job.given.values()))
    chosen = [x for x in job.steps if x == "plain" or not names or x in names]

    def compiled(name: str) -> Contestant:
        with jax.set_mesh(job.mesh) if job.mesh else contextlib.nullcontext():
            out = _harness.compiled(name, job.steps[name], *first)
        program = _programs.read(out.executable.as_text())
        facts = {key: out.facts[key] for key in ("temp_bytes", "output_bytes")}
        facts["planned_kernels"] = program.least["kernels"]
        return out._replace(facts=facts)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(compiled, chosen))


def timed(
    job: Job, entries: Sequence[Contestant], repeats: int, seconds: float
) -> Iterator[Row]:
    """Rows of all regimes: time in turns, and what the device was busy with."""
    calls = 1 if job.name == DECODER else CALLS
    entries = [entry for entry in entries if _fits(entry, job)]
    for regime, given in job.given.items():
        chosen = [
            entry._replace(run=functools.partial(_some, entry.executable, given, calls))
            for entry in entries
        ]
        times = _harness.interleave(chosen, repeats, seconds)
        each = {
            name: {turn: s / calls for turn, s in turns.items()}
            for name, turns in times.items()
        }
        common = {
            "benchmark": "gpu",
            "workload": job.name,
            "regime": regime,
            "graphs": GRAPHS in os.environ.get("XLA_FLAGS", ""),
            "batch_size": job.batch_size,
            "param_bytes": job.param_bytes,
        }
        chosen = [x._replace(facts={**x.facts, **busy(x.run, calls)}) for x in chosen]
        yield from _harness.sum_up(chosen, each, **common)


def _fits(entry: Contestant, job: Job) -> bool:
    """Whether the device has the memory; what it says if it has not."""
    try:
        _some(entry.executable, next(iter(job.given.values())), 1)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(
            f"{job.name}, {entry.name}: {str(error).splitlines()[0]}", file=sys.stderr
        )
        return False
    return True


def _some(executable: Any, given: tuple[Any, Any], calls: int) -> None:
    for _ in range(calls):
        out = executable(*given)
    jax.block_until_ready(out)


def busy(run: Callable[[], None], calls: int) -> Row:
    """What the profiler saw on the device, for one step; nothing where it saw none."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        kernels = list(_kernels(Path(folder)))
    if not kernels:
        return {}
    took: collections.Counter[str] = collections.Counter()
    for name, nanoseconds in kernels:
        took[_NUMBER.sub("", name)[:60]] += nanoseconds / calls
    return {
        "busy_ms": round(sum(took.values()) / 1e6, 5),
        "kernels": round(len(kernels) / calls),
        "longest": {name: round(ns / 1e3, 1) for name, ns in took.most_common(6)},
    }


def _kernels(folder: Path) -> Iterator[tuple[str, float]]:
    for path in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            if plane.name.startswith("/device:GPU"):
                for line in plane.lines:
                    if line.name.startswith("Stream"):
                        for event in line.events:
                            yield event.name, event.duration_ns


def table(rows: Sequence[Row], workload: str) -> str:
    """Markdown of one model, the worse of both regimes."""
    heads = ["step / plain", "with graphs", "device / plain", "kernels, planned"]
    heads += ["temporary memory above plain / parameters"]
    own = [row for row in rows if row["workload"] == workload]
    lines = [f"| {workload}, {own[0]['device']} | " + " | ".join(heads) + " |"]
    lines += ["|---" * (len(heads) + 1) + "|"]
    for name in dict.fromkeys(row["contestant"] for row in own):
        cells = []
        for graphs in (False, True):
            found = [
                row
                for row in own
                if (row["contestant"], row["graphs"]) == (name, graphs)
            ]
            worst = max(found, key=lambda row: row["ratio"], default=None)
            cells.append(f"{worst['ratio']:.2f}" if worst else "")
            if not graphs and worst:
                last = [_busy_ratio(own, worst), _kernels_of(worst)]
                last += [f"{worst['temp_above_plain_in_params']:.2f}"]
        if name == "plain":
            cells = [f"{row['ms']:.3g} ms" for row in own if row["contestant"] == name]
            cells = [*cells[:1], ""]
        lines.append(f"| {name} | " + " | ".join([*cells, *last]) + " |")
    return "\n".join(lines)


def _busy_ratio(rows: Sequence[Row], row: Row) -> str:
    same = lambda x: all(x[key] == row[key] for key in ("regime", "graphs"))
    plain = next(x for x in rows if same(x) and x["contestant"] == "plain")
    if not row.get("busy_ms") or not plain.get("busy_ms"):
        return ""
    return f"{row['busy_ms'] / plain['busy_ms']:.2f}"


def _kernels_of(row: Row) -> str:
    seen = row.get("kernels")
    return f"{seen or '?'}, {row['planned_kernels']}"


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """The new rows in the place of the same old ones."""
    by_key = {tuple(row[key] for key in _KEY): row for row in (*old, *new)}
    return sorted(by_key.values(), key=lambda row: NAMES.index(row["workload"]))


def write_table(rows: Sequence[Row], folder: Path) -> None:
    """Writes ``gpu.md``."""
    names = dict.fromkeys(row["workload"] for row in rows)
    text = "\n\n".join(table(rows, name) for name in names) + "\n"
    (folder / "gpu.md").write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the chosen models; writes ``gpu.json`` and ``gpu.md``."""
    options = _harness.parser(__doc__)
    options.add_argument("--workload", choices=NAMES, nargs="+")
    options.add_argument("--contestants", nargs="+", default=[])
    options.add_argument("--threads", type=int, default=4, help="that compile")
    options.add_argument("--graphs", action="store_true", help="see above")
    args = _harness.parse(options, argv)
    if args.graphs:  # read when the first program is compiled
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {GRAPHS}".strip()
    rows = []
    for name in args.workload or NAMES:
        work = job(name, args.smoke)
        entries = contestants(work, args.threads, args.contestants)
        rows += timed(work, entries, args.repeats, args.seconds)
    env = _harness.environment()
    rows = merged(_harness.read("gpu", args.out), [{**row, **env} for row in rows])
    _harness.write("gpu", rows, {}, args.out)
    write_table(rows, args.out)


if __name__ == "__main__":
    main()
