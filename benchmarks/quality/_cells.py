"""What is finished stays: one line of JSON for each cell, written when it is done."""

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
    """Cells of one file. A line that a crash cut off is no cell."""

    def __init__(self, path: Path, env: dict[str, Any] | None = None):
        """Reads what is there; ``env`` is written beside every new cell."""
        self._path, self._env = path, env or {}
        self._known = {_key(line["cell"]): line["found"] for line in _lines(path)}

    def get(self, cell: Cell) -> Found | None:
        """What was found, if it was."""
        return self._known.get(_key(cell))

    def add(self, cell: Cell, found: dict[str, np.ndarray]) -> Found:
        """Writes one cell down, and brings it to the disk."""
        rounded = {k: _rounded(v) for k, v in found.items()}
        line = json.dumps({"cell": cell, "found": rounded, **self._env})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        cut_off = self._path.exists() and not self._path.read_bytes().endswith(b"\n")
        with self._path.open("a", encoding="utf-8") as file:
            file.write(("\n" if cut_off else "") + line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._known[_key(cell)] = rounded
        return rounded


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
    """Five digits: far below what seeds differ by."""
    return json.loads(
        json.dumps(values.tolist()), parse_float=lambda x: float(f"{float(x):.5g}")
    )
