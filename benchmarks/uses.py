"""What do rows cost that are looked at, selected, or followed by more than a rule?

    python -m benchmarks.uses --repeats 9 --seconds 3

Whole steps, from parameters and batch to the update, as ratios to the gradient of the
mean loss; those with an optimizer stand beside ``Adam``, the plain gradient and
``optax.adam``. Random data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import consensus_optax as co
from benchmarks import _harness, _steps, _workloads
from benchmarks._harness import Row, compiled
from benchmarks._steps import Step
from benchmarks._workloads import Workload

CLIP, RATE, KEPT = 1.0, 1e-3, 8


def looks(work: Workload) -> Iterator[tuple[str, Step]]:
    """What looks at rows: with no update, or ahead of the mean."""
    yield "norms alone", _steps.norms(work)
    for name, probe in {
        "probe of norms": co.probe(reads="norms"),
        "probe": co.probe(),
        "probe of every leaf": co.probe(groups=co.diagnostics.leaf_names),
    }.items():
        yield f"{name}, mean", _reduced(work, co.chain(probe, co.mean()))


def rules(work: Workload) -> Iterator[tuple[str, Step]]:
    """Rules that select, or clip and add noise, beside the mean of all rows."""
    yield "mean", _reduced(work, co.mean())
    target = jax.tree.map(jnp.ones_like, work.params)  # which one costs the same
    best = co.select_toward(min_cosine=-1.0, top_k=KEPT, by="product")
    yield "select_toward", _reduced(work, co.select_toward(), target=target)
    yield f"select_toward, the best {KEPT}", _reduced(work, best, target=target)
    private = co.private_sum(
        CLIP, divisor=work.batch_size, noise_multiplier=1.0, key=jax.random.key(0)
    )
    yield "private_sum", _reduced(work, private)


def optimizers(work: Workload) -> Iterator[tuple[str, Step]]:
    """Optimizers whose moments are of rows, or whose steps ask the mean."""
    adam = optax.adam(RATE)
    plain = _steps.plain(work)
    yield "Adam", lambda *given: adam.update(plain(*given), adam.init(given[0]))
    for name, chain in {
        "mean, cautious(Adam)": (co.mean(), co.cautious(adam)),
        "mean, magma(Adam)": (co.mean(), co.magma(adam, jax.random.key(0))),
        "scale_by_example_moments": (co.scale_by_example_moments(), optax.scale(-RATE)),
    }.items():
        yield name, _reduced(work, optax.chain(*chain))


def _reduced(work: Workload, optimizer: Any, **extra: Any) -> Step:
    rows = co.per_example_grad(work.loss)
    return lambda params, batch: optimizer.update(
        rows(params, batch), optimizer.init(params), params, **extra
    )


def steps(work: Workload) -> Iterator[tuple[str, Step]]:
    """(name, step) of all of them."""
    for kind in (looks, rules, optimizers):
        yield from kind(work)


def run(work: Workload, repeats: int, seconds: float) -> list[Row]:
    """One interleaved run."""
    given = (work.params, work.batch)
    entries = [compiled("plain", _steps.plain(work), *given, compiles=2)]
    return _harness.measure(
        [*entries, *(compiled(name, step, *given) for name, step in steps(work))],
        repeats,
        seconds,
        benchmark="uses",
        workload=work.name,
        batch_size=work.batch_size,
        param_bytes=work.param_bytes,
    )


def table(rows: Sequence[Row]) -> str:
    """Markdown: times the plain step; temporary memory above its, in parameters."""
    names = dict.fromkeys(row["workload"] for row in rows)
    lines = ["| times plain, memory above it | " + " | ".join(names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    cells = {(row["contestant"], row["workload"]): row for row in rows}
    for contestant in dict.fromkeys(row["contestant"] for row in rows):
        own = [cells[contestant, name] for name in names]
        texts = [
            f"{row['ratio']:.2f}, {row['temp_above_plain_in_params']:+.3g} P"
            for row in own
        ]
        lines.append(f"| {contestant} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes ``uses.json`` and ``uses.md``."""
    options = _harness.parser(__doc__)
    options.add_argument("--workload", choices=_workloads.NAMES, nargs="+")
    args = _harness.parse(options, argv)
    rows = []
    for name in args.workload or _workloads.NAMES:
        work = _workloads.workload(name, args.smoke)
        rows += run(work, args.repeats, args.seconds)
    _harness.write("uses", rows, _harness.environment(), args.out)
    (args.out / "uses.md").write_text(table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
