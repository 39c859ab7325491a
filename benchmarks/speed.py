"""What does a step cost, against the plain mean gradient of the same model?

    python -m benchmarks.speed --workload mlp --repeats 20

Two regimes, since a fold may stop once no coordinate is left: "disagreeing" is random
data, "agreeing" has the same example in every row, so that everything is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks import _harness, _steps, _workloads
from benchmarks._harness import Contestant, Row, compiled
from benchmarks._workloads import Workload


def contestants(
    work: Workload, vias: Sequence[str], compiles: int = 1
) -> Iterator[Contestant]:
    """The floor first, then the optimizer, what is written by hand, and ours."""
    given = (work.params, work.batch)
    yield compiled("plain", _steps.plain(work), *given, compiles=compiles + 1)
    step, arguments = _steps.adam(work)
    yield compiled("adam alone", step, *arguments, compiles=compiles)
    for name, step in {
        "vmap(grad), min/max": _steps.stacked_min_max(work),
        "vmap(grad), Gramian": _steps.stacked_gramian(work),
    }.items():
        yield compiled(name, step, *given, compiles=compiles)
    for reducer, via, step in _steps.all_ours(work, tuple(vias)):
        facts = {"compiles": compiles, "reducer": reducer, "via": via}
        yield compiled(f"{reducer} [{via}]", step, *given, **facts)


def run(
    work: Workload,
    repeats: int,
    seconds: float,
    vias: Sequence[str] = tuple(_steps.VIAS),
    compiles: int = 1,
) -> list[Row]:
    """Both regimes of one workload: the same compiled steps on other data."""
    entries = list(contestants(work, vias, compiles))
    rows = []
    for regime, data in {"disagreeing": work, "agreeing": work.agreeing()}.items():
        given = (data.params, data.batch)
        rows += _harness.measure(
            [x if x.name == "adam alone" else x.on(*given) for x in entries],
            repeats,
            seconds,
            benchmark="speed",
            workload=work.name,
            regime=regime,
            batch_size=work.batch_size,
            param_bytes=work.param_bytes,
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the chosen workloads and writes ``speed.json``."""
    options = _harness.parser(__doc__)
    options.add_argument("--workload", choices=_workloads.NAMES, nargs="+")
    options.add_argument("--via", choices=tuple(_steps.VIAS), nargs="+")
    options.add_argument("--compiles", type=int, default=1, help="least of how many")
    args = _harness.parse(options, argv)
    rows = []
    for name in args.workload or _workloads.NAMES:
        work = _workloads.workload(name, args.smoke)
        vias = args.via or tuple(_steps.VIAS)
        rows += run(work, args.repeats, args.seconds, vias, args.compiles)
    _harness.write("speed", rows, _harness.environment(), args.out)


if __name__ == "__main__":
    main()
