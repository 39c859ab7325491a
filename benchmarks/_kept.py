"""Rows that stay: those of earlier runs, of other processes, and what is made now.

Every row is written as soon as it is there, and a row made anew takes the place of the
old one. So several processes may share the work, each into a folder of its own
(``--out``), and ``--merge`` joins them; ``--resume`` makes what is not there yet.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import _harness
from benchmarks._harness import Row

Done = Callable[..., bool]


class Kind(NamedTuple):
    """What the rows of one benchmark are.

    Attributes:
      name: of the files.
      place: what tells rows apart, and puts them in order.
      table: Markdown of some rows.
      plot: writes a picture of them.
    """

    name: str
    place: Callable[[Row], tuple[Any, ...]]
    table: Callable[[Sequence[Row]], str]
    plot: Callable[[Sequence[Row], Path], None]


def add_options(options: argparse.ArgumentParser) -> None:
    """``--merge`` and ``--resume``."""
    options.add_argument(
        "--merge",
        type=Path,
        nargs="*",
        metavar="FOLDER",
        help="run nothing: join the rows of these folders to those of --out",
    )
    options.add_argument(
        "--resume", action="store_true", help="leave out what --out has already"
    )


def joined(kind: Kind, *runs: Iterable[Row]) -> list[Row]:
    """Rows in order; of two in one place the later."""
    rows = {kind.place(row): row for run in runs for row in run}
    return [rows[place] for place in sorted(rows)]


def percent(shares: Sequence[float]) -> str:
    """Mean over seeds and half the range, in per cent."""
    found = 100 * np.array(shares)
    return f"{found.mean():.1f} ± {np.ptp(found) / 2:.1f}"


def present(kind: Kind, folder: Path) -> None:
    """Writes table and picture of the rows of a folder, if there are any."""
    if rows := _harness.read(kind.name, folder):
        text = kind.table(rows) + "\n"
        (folder / f"{kind.name}.md").write_text(text, encoding="utf-8")
        kind.plot(rows, folder / f"{kind.name}.png")


def keep(kind: Kind, args: Any, make: Callable[[Done], Iterable[Row]]) -> None:
    """Makes rows, or merges them, and presents what is there.

    Args:
      kind: what they are.
      args: parsed options: ``out``, ``merge``, ``resume``.
      make: from ``done(**facts)``, whether there are rows of which all of that is true
        and which are not to be made anew, to the rows.
    """
    folders = [args.out, *(args.merge or ())]
    for folder in folders[1:]:
        if not (folder / f"{kind.name}.json").exists():
            raise SystemExit(f"--merge: there is no {kind.name}.json in {folder}")
    rows = joined(kind, *(_harness.read(kind.name, folder) for folder in folders))
    known = list(rows) if args.resume else []

    def done(**facts: Any) -> bool:
        same = lambda row: all(row.get(key) == fact for key, fact in facts.items())
        return any(map(same, known))

    if args.merge is None:
        env = _harness.environment("flax")
        for row in make(done):
            _harness.show(row)
            rows = joined(kind, rows, [{**row, **env}])
            _harness.write(kind.name, rows, {}, args.out)
    elif rows:
        _harness.write(kind.name, rows, {}, args.out)
    present(kind, args.out)
