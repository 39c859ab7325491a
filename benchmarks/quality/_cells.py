"""What is finished stays: one line of JSON for each cell, written when it is done.

Several processes may ask one question, each a part of its arms: each writes a file of
its own beside the question's, and all are read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

Cell = dict[str, Any]  # what was asked, of numbers and words
Found = dict[str, Any]  # what was found, lists of numbers by name


class Cells:
    """Cells of one question. A line that a crash cut off is no cell."""

    def __init__(self, path: Path, env: dict[str, Any] | None = None, part: str = ""):
        """Reads what is there.

        Args:
          path: the question's file.
          env: is written beside every new cell.
          part: new cells are written to the file of this part.
        """
        self._whole = path
        self._path = _of_part(path, part) if part else path
        self._env = env or {}
        files = [path, *_parts(path)]
        self._known = {
            _key(line["cell"]): line["found"] for file in files for line in _lines(file)
        }

    def get(self, cell: Cell) -> Found | None:
        """What was found, if it was."""
        return self._known.get(_key(cell))

    def add(self, cell: Cell, found: dict[str, np.ndarray], seconds: float) -> Found:
        """Writes one cell down, and how long it took, and brings it to the disk."""
        rounded = {k: _rounded(v) for k, v in found.items()}
        line = {"cell": cell, "found": rounded, "seconds": round(seconds, 1)}
        _append(self._path, [{**line, **self._env}])
        self._known[_key(cell)] = rounded
        return rounded

    def join(self) -> None:
        """Files of parts become one with the question's; none may still be written."""
        there = {_key(line["cell"]) for line in _lines(self._whole)}
        for part in _parts(self._whole):
            new = [line for line in _lines(part) if _key(line["cell"]) not in there]
            there |= {_key(line["cell"]) for line in new}
            _append(self._whole, new)
            part.unlink()


def _of_part(path: Path, part: str) -> Path:
    return path.with_suffix(f".{part}{path.suffix}")


def _parts(path: Path) -> list[Path]:
    return sorted(path.parent.glob(_of_part(path, "*").name))


def _append(path: Path, lines: list[dict[str, Any]]) -> None:
    """Brings lines to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cut_off = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if cut_off else "") + "".join(map(_written, lines)))
        file.flush()
        os.fsync(file.fileno())


def _written(line: dict[str, Any]) -> str:
    return json.dumps(line) + "\n"


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(text)
        except json.JSONDecodeError:
            continue


def _key(cell: Cell) -> str:
    return json.dumps(cell, sort_keys=True)


def _rounded(values: np.ndarray) -> Any:
    """Five digits: far below what seeds differ by. Null for what JSON does not know."""
    return json.loads(
        json.dumps(values.tolist()),
        parse_float=lambda x: float(f"{float(x):.5g}"),
        parse_constant=lambda _: None,
    )
