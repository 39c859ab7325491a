"""What the commands share: progress, folders, files, how they end."""

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C


class UsageError(Exception):
    """Something the user can put right, said in one line."""


def left(
    failed: Mapping[str, str], curves: Mapping[str, Any], interrupted: bool
) -> bool:
    """Says who was left out, and whether anybody is left."""
    for name, why in failed.items():
        print(f"left out {name}: {why}", file=sys.stderr)
    if interrupted and not curves:
        print("interrupted before anything was finished", file=sys.stderr)
    return bool(curves)


def write(out: Path, table: str, json: str) -> None:
    """What is to be kept, beside the picture."""
    (out / "results.json").write_text(json, encoding="utf-8")
    (out / "table.md").write_text(table + "\n", encoding="utf-8")


def told(out: Path, table: str, interrupted: bool, some: bool) -> int:
    """Prints the table, and gives the exit code."""
    # last, since a reader such as ``head`` may have gone
    print(f"\n{table}\n")
    print(f"wrote results.json, table.md and curves.png to {out}")
    if interrupted:
        print("interrupted: kept what was finished", file=sys.stderr)
        return INTERRUPTED
    return 0 if some else 2


def folder(name: str) -> Path:
    """A folder to write to, made if it is not there."""
    path = Path(name)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {name!r}: {error.strerror}") from None
    return path


class Progress:
    """A bar over the steps of all rules; silent where there is no terminal."""

    def __init__(self, total: int, unit: str = "step"):
        from tqdm import tqdm

        self._bar = tqdm(total=total, unit=unit, disable=None, leave=False)

    def __enter__(self) -> Callable[[str, int], None]:
        return self._advance

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _advance(self, name: str, steps: int) -> None:
        self._bar.set_description(name if steps else f"{name} (compiling)")
        self._bar.update(steps)


def positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Reads positive numbers of a kind."""

    def convert(text: str) -> Any:
        value = kind(text)
        if not (value > 0 and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"must be positive; got {text}")
        return value

    convert.__name__ = f"positive {kind.__name__}"
    return convert


def count(text: str) -> int:
    """Reads 0 and more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more; got {text}")
    return value
