"""What does each rule cost, and how does that grow with the number of rows?

    python -m benchmarks.rules --rules mgda upgrad --repeats 20

Every reducer of the registry, and those that need arguments. First alone, on rows of so
few numbers that a Gramian of them is cheap ("Gramian" is timed beside it): what is left
is what a rule does with B x B numbers. Then within a step on the MLP and on the
transformer, against the plain mean gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import consensus_optax as co
from benchmarks import _harness, _steps, _workloads
from benchmarks._harness import Contestant, Row, compiled
from benchmarks._workloads import Workload
from consensus_optax import _registry

BATCHES = (8, 16, 32, 64, 128, 256, 512)
SMOKE_BATCHES = (8, 12)
WORKLOADS = ("mlp", "transformer")
PARAMS = 512  # numbers in a row: B rows of them do not depend on each other

# Reducers that need arguments; those that need more than rows are left out.
OTHERS: dict[str, Callable[[], Any]] = {
    "pcgrad": lambda: co.pcgrad(jax.random.key(0)),
    "graddrop": lambda: co.graddrop(0.0, jax.random.key(0)),
    "krum": lambda: co.krum(1),
    "bulyan": lambda: co.bulyan(1),
    "trimmed_mean": lambda: co.trimmed_mean(1),
    "winsorized_mean": lambda: co.winsorized_mean(0.1),
    "mean_around_median": lambda: co.mean_around_median(1),
    "minimum_diameter": lambda: co.minimum_diameter(1),
    "smea": lambda: co.smea(1),
    "caf": lambda: co.caf(1),
    "monna": lambda: co.monna(1),
    "comparative_elimination": lambda: co.comparative_elimination(1),
    "divide_and_conquer": lambda: co.divide_and_conquer(1),
    "centered_clipping": lambda: co.centered_clipping(1.0),
    "clipped_sum": lambda: co.clipped_sum(1.0),
}


def rules() -> dict[str, Callable[[], Any]]:
    """Every reducer that is measured, by name; the mean first."""
    return {"mean": co.mean, **_registry.factories(), **OTHERS}


def rows_of(batch_size: int) -> jax.Array:
    """Rows that share a direction and differ by noise, as many agreeing as not."""
    rng = np.random.default_rng(batch_size)
    common, noise = rng.normal(size=PARAMS), rng.normal(size=(batch_size, PARAMS))
    return jnp.asarray(0.1 * common + noise, jnp.float32)  # (B, P)


def alone(names: Iterable[str], batch_size: int) -> list[Contestant]:
    """The mean, which others are compared with, a Gramian, and the rules."""
    known = rules()
    rows, params = rows_of(batch_size), jnp.zeros(PARAMS)

    def contestant(name: str) -> Contestant:
        reducer = known[name]()
        step = lambda rows, state: reducer.update(rows, state, params)
        return compiled(name, step, rows, reducer.init(params), baseline="mean")

    gramian = lambda rows: jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)
    return [
        contestant("mean"),
        compiled("Gramian", gramian, rows, baseline="mean"),
        *(contestant(name) for name in names if name != "mean"),
    ]


def in_a_step(names: Iterable[str], work: Workload) -> list[Contestant]:
    """The plain step, and gradients and rule together."""
    known, given = rules(), (work.params, work.batch)
    steps = {name: _steps.reduced(work, known[name](), "lazy") for name in names}
    return [
        compiled("plain", _steps.plain(work), *given),
        *(compiled(name, step, *given) for name, step in steps.items()),
    ]


def run(
    names: Sequence[str], repeats: int, seconds: float, smoke: bool = False
) -> list[Row]:
    """Both questions, with the time in microseconds too."""
    common: dict[str, Any] = {"benchmark": "rules"}
    rows = []
    for batch_size in SMOKE_BATCHES if smoke else BATCHES:
        entries, facts = alone(names, batch_size), {**common, "batch_size": batch_size}
        rows += _harness.measure(entries, repeats, seconds, workload="alone", **facts)
    for workload in WORKLOADS:
        work = _workloads.workload(workload, smoke)
        rows += _harness.measure(
            in_a_step(names, work),
            repeats,
            seconds,
            workload=workload,
            batch_size=work.batch_size,
            param_bytes=work.param_bytes,
            **common,
        )
    return [{**row, "us": float(f"{1e3 * row['ms']:.4g}")} for row in rows]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: microseconds alone by B, then the ratio to the plain step."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["workload"] == "alone":
            column, cell = f"B = {row['batch_size']}, us", f"{row['us']:.0f}"
        else:
            column, cell = f"{row['workload']}, x plain", f"{row['ratio']:.2f}"
        cells.setdefault(row["contestant"], {})[column] = cell
    columns = list(dict.fromkeys(column for own in cells.values() for column in own))
    lines = [" | ".join(["| rule", *columns]) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, own in cells.items():
        line = [f"| {name}", *(own.get(column, "-") for column in columns)]
        lines.append(" | ".join(line) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes ``rules.json`` and ``rules.md``."""
    options = _harness.parser(__doc__)
    options.add_argument("--rules", choices=tuple(rules()), nargs="+")
    args = _harness.parse(options, argv)
    names = args.rules or tuple(rules())
    rows = run(names, args.repeats, args.seconds, args.smoke)
    _harness.write("rules", rows, _harness.environment(), args.out)
    (args.out / "rules.md").write_text(table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
