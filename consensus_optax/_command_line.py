"""What the commands share: progress, folders, files, how they end."""

import argparse
import itertools
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

EVERY = 5.0  # seconds between two lines
FILES = ("results.json", "table.md", "curves.png")
INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C


class UsageError(Exception):
    """Something the user can put right, said in one line."""


def left(
    failed: Mapping[str, str], curves: Mapping[str, Any], interrupted: bool
) -> bool:
    """Says who was left out, and whether anybody is left."""
    for name, why in failed.items():
        print(f"left out {name}: {why}", file=sys.stderr)
    if interrupted:
        hear_no_more()
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


def folder(name: str | None, default: str, *, overwrite: bool = False) -> Path:
    """A folder that has no results yet.

    Args:
      name: the folder asked for, or None.
      default: what it is called otherwise; with ``-2``, ``-3`` ... behind it, if there
        are results in it.
      overwrite: results in it are written over.

    Returns:
      The folder, made if it was not there.

    Raises:
      UsageError: there are results in the folder asked for, or it cannot be made.

    Examples:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as there:
      ...     first = folder(None, f"{there}/run")
      ...     _ = (first / "table.md").write_text("|")
      ...     folder(None, f"{there}/run").name
      'run-2'
    """
    if name is not None:
        path = Path(name)
        found = [file for file in FILES if (path / file).exists()]
        if found and not overwrite:
            raise UsageError(
                f"{name!r} already has {', '.join(found)}: give another --out, or "
                "--overwrite"
            )
    else:
        numbered = (Path(f"{default}-{number}") for number in itertools.count(2))
        path = Path(default)
        while not overwrite and any((path / file).exists() for file in FILES):
            path = next(numbered)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {str(path)!r}: {error.strerror}") from None
    return path


class Progress:
    """Steps done of all steps, told on the standard error stream.

    It also tells, while nothing advances, that something is still being done.

    Examples:
      >>> with Progress(total=3, programs=1) as progress:
      ...     progress("mean", 0)  # is compiled
      ...     progress("mean", 3)
    """

    def __init__(
        self, total: int, programs: int, unit: str = "step", *, every: float = EVERY
    ):
        """A progress over ``total`` steps, of so many programs, a line every so often.

        Args:
          total: how many steps.
          programs: how many programs are compiled before the first step.
          unit: what one of them is called.
          every: seconds between two lines.
        """
        from tqdm import tqdm

        self._unit = unit
        self._total, self._every, self._done = total, every, 0
        self._programs, self._compiled = programs, 0
        self._now = f"compiling, 0 of {programs} programs ready"
        self._begin = self._begin_steps = time.perf_counter()
        self._ended = threading.Event()
        self._bar = tqdm(
            total=total, unit=unit, disable=None, leave=False, smoothing=0.1
        )
        self._teller = threading.Thread(target=self._tell_on, daemon=True)

    def __enter__(self) -> Self:
        """Begins to tell."""
        self._teller.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends it, and takes the bar away."""
        self._ended.set()
        self._teller.join()
        self._bar.close()

    def __call__(self, name: str, steps: int) -> None:
        """Some steps of a rule are done; 0: its program is compiled."""
        if not steps:
            self._compiled += 1
            ready = f"{self._compiled} of {self._programs} programs ready"
            self._now = f"compiling, {ready}"
            self._begin_steps = time.perf_counter()
        else:
            self._now = name
        self._done += steps
        if not self._bar.disable:
            self._bar.set_description(self._now, refresh=False)
            self._bar.update(steps)

    def _tell_on(self) -> None:
        while not self._ended.wait(1.0 if not self._bar.disable else self._every):
            if self._bar.disable:
                print(self._line(), file=sys.stderr, flush=True)
            else:
                self._bar.refresh()  # the seconds go on while nothing else does

    def _line(self) -> str:
        now = time.perf_counter()
        line = f"{now - self._begin:5.0f} s: {self._now}"
        if self._done:
            left = (self._total - self._done) / self._done * (now - self._begin_steps)
            share = 100 * self._done / self._total
            line += f", {self._done} of {self._total} {self._unit}s ({share:.0f} %)"
            line += f", {left:.0f} s left"
        return line


def hear_no_more() -> None:
    """Nothing that is being written down is cut by a second Ctrl-C."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # only the main thread may say so, and hears of Ctrl-C
        return


def add_out(add: Callable[..., Any], default: str) -> None:
    """Where to write, and whether over what is there."""
    add("--out", help=f"folder for the results (default: {default}, or the next)")
    add("--overwrite", action="store_true", help="write over results in that folder")


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
