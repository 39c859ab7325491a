"""What does a reduction over several processes cost, against a plain ``pmean``?

    python -m benchmarks.multihost --repeats 10

The reduction alone, one row on every device: two and four processes of this machine,
which talk through sockets (gloo), and four devices of one process.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from benchmarks import _harness, _processes
from benchmarks._harness import Row

SETUPS = ((1, 4), (2, 1), (4, 1))  # processes, devices of each
SIZES = (100_000, 1_000_000, 4_000_000)
TIMEOUT_S = 900


def run(
    setups: Sequence[tuple[int, int]], sizes: Sequence[int], repeats: int, calls: int
) -> list[Row]:
    """One row for every contestant, size and number of processes."""
    rows = []
    options = json.dumps({"sizes": sizes, "repeats": repeats, "calls": calls})
    for num_processes, devices in setups:
        ended = _processes.run(
            "benchmarks._reductions",
            num_processes,
            [options],
            timeout=TIMEOUT_S,
            devices=devices,
        )
        first, *_ = _processes.checked(ended)
        lines = [line for line in first.splitlines() if line.startswith("{")]
        rows += [json.loads(line) for line in lines]
        print(*lines, sep="\n", flush=True)
    return rows


def table(rows: Sequence[Row]) -> str:
    """Markdown: ratio to pmean, and its milliseconds; one line for each contestant."""
    place = lambda row: (row["num_processes"], row["num_devices"], row["num_params"])
    cells = {(row["contestant"], *place(row)): row for row in rows}
    places = sorted({place(row) for row in rows})
    heads = [f"{n} of {d} devices, {p:.0e}".replace("e+0", "e") for n, d, p in places]
    lines = ["| times pmean; processes, P | " + " | ".join(heads) + " |"]
    lines.append("|---" * (len(places) + 1) + "|")
    for name in dict.fromkeys(row["contestant"] for row in rows):
        found = [cells.get((name, *where)) for where in places]
        texts = [_cell(row) if row else "-" for row in found]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _cell(row: Row) -> str:
    if row["contestant"] == row["baseline"]:
        return f"{row['ms']:.3g} ms"
    return f"{row['ratio']:.2f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Writes ``multihost.json`` and ``multihost.md``."""
    args = _harness.parse(_harness.parser(__doc__), argv)
    if args.smoke:
        rows = run(((1, 4), (2, 1)), (4000,), args.repeats, calls=1)
    else:
        rows = run(SETUPS, SIZES, args.repeats, calls=5)
    _harness.write("multihost", rows, _harness.environment(), args.out)
    (args.out / "multihost.md").write_text(table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
