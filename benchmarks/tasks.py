"""What do several losses cost, against the gradient of their sum?

    python -m benchmarks.tasks --workload pinn --repeats 9

Rows of ``co.task_grad``, and those of ``jax.jacrev`` given to the same rule; where
torch and TorchJD are installed, its ``mtl_backward`` and ``autogram`` on the model with
heads, relative to torch's own plain step. What is not installed is skipped with a
message.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import consensus_optax as co
from benchmarks import _harness, _task_workloads
from benchmarks._harness import Contestant, Row, compiled
from benchmarks._workloads import Workload
from benchmarks.peers import PACKAGES, has, installed

RULES: dict[str, Callable[[], optax.GradientTransformation]] = {
    "mean": co.mean,
    "mgda": co.mgda,
    "upgrad": co.upgrad,
    "sign_consensus": co.sign_consensus,
}


def plain(work: Workload) -> Callable[..., Any]:
    """The gradient of the losses' mean."""

    def mean(params: Any, batch: Any) -> jax.Array:
        losses = jax.tree.leaves(work.loss(params, batch))
        return jnp.mean(jnp.concatenate([x.reshape(-1) for x in losses]))

    return jax.grad(mean)


def jacobian(work: Workload) -> Callable[..., Any]:
    """Rows as ``jax.jacrev`` gives them."""

    def vector(params: Any, batch: Any) -> jax.Array:
        losses = jax.tree.leaves(work.loss(params, batch))
        return jnp.concatenate([x.reshape(-1) for x in losses])

    return jax.jacrev(vector)


def contestants(work: Workload) -> Iterator[Contestant]:
    """The plain step, then every rule on both kinds of rows."""
    given = (work.params, work.batch)
    yield compiled("plain", plain(work), *given, compiles=2)
    ways = {"task_grad": co.task_grad(work.loss), "jacrev": jacobian(work)}
    for name, make in RULES.items():
        for way, rows in ways.items():
            yield compiled(f"{name} [{way}]", _step(make(), rows), *given)
    if work.name == "heads":
        yield from _torch_contestants(work)


def _step(rule: Any, rows: Callable[..., Any]) -> Callable[..., Any]:
    return lambda params, batch: rule.update(
        rows(params, batch), rule.init(params), params
    )


def _torch_contestants(work: Workload) -> Iterator[Contestant]:
    if not (installed("torch") and installed("torchjd")):
        return
    steps = importlib.import_module("benchmarks._torch_tasks").steps(work)
    memory = importlib.import_module("benchmarks._torch_models").temporary_bytes
    for name, step in steps:
        facts = {"side": "torch", "temp_bytes": memory(step, work.param_bytes)}
        yield Contestant(name, step, facts, baseline="torch: plain")


def run(work: Workload, repeats: int, seconds: float) -> list[Row]:
    """One interleaved run."""
    return _harness.measure(
        [*contestants(work)],
        repeats,
        seconds,
        benchmark="tasks",
        workload=work.name,
        batch_size=work.batch_size,
        param_bytes=work.param_bytes,
    )


def table(rows: Sequence[Row]) -> str:
    """Markdown: times the plain step; temporary memory in parameters."""
    names = dict.fromkeys(row["workload"] for row in rows)
    lines = ["| times plain; temporary memory | " + " | ".join(names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    cells = {(row["contestant"], row["workload"]): row for row in rows}
    for contestant in dict.fromkeys(row["contestant"] for row in rows):
        line = [_cell(cells.get((contestant, name))) for name in names]
        lines.append(f"| {contestant} | " + " | ".join(line) + " |")
    return "\n".join(lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    if "temp_bytes" not in row:
        return f"{row['ratio']:.2f}"
    return f"{row['ratio']:.2f}; {row['temp_bytes'] / row['param_bytes']:.1f} P"


def main(argv: Sequence[str] | None = None) -> None:
    """Writes ``tasks.json`` and ``tasks.md``."""
    options = _harness.parser(__doc__)
    options.add_argument("--workload", choices=_task_workloads.NAMES, nargs="+")
    args = _harness.parse(options, argv)
    rows = []
    for name in args.workload or _task_workloads.NAMES:
        work = _task_workloads.workload(name, args.smoke)
        rows += run(work, args.repeats, args.seconds)
    present = [name for name in PACKAGES if has(name)]
    _harness.write("tasks", rows, _harness.environment(*present), args.out)
    (args.out / "tasks.md").write_text(table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
