"""Data of many clients, for the benchmarks of federated rounds."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from consensus_optax import comparison, tasks
from consensus_optax.comparison import ClientTask

CONCENTRATION = 0.3  # of Dirichlet's distribution, by which pictures are shared out
LOCAL_RATES = MappingProxyType(
    {"digits": 0.1, "fashion_mnist": 0.1, "shakespeare": 1.0}
)
TASKS = tuple(LOCAL_RATES)

Make = Callable[..., ClientTask]


def add_options(options: argparse.ArgumentParser) -> None:
    """``--tasks`` and ``--fashion-mnist``."""
    options.add_argument(
        "--tasks",
        choices=TASKS,
        nargs="+",
        help="by default all whose data are there; of a smoke run the digits",
    )
    options.add_argument(
        "--fashion-mnist",
        type=Path,
        metavar="FOLDER",
        help="of its four files; by default where `tasks.fashion_mnist` looks",
    )


def asked_for(args: Any) -> dict[str, Make]:
    """What makes each task, of those that the options ask for.

    Each takes ``num_clients`` (of pictures), ``width``, ``concentration``,
    ``batch_size`` (of pictures), ``num_windows`` and ``test_windows`` (of text).
    """
    folder = {"folder": args.fashion_mnist} if args.fashion_mnist else {}
    load = {
        "digits": tasks.digits,
        "fashion_mnist": lambda: tasks.fashion_mnist(**folder),
        "shakespeare": tasks.shakespeare,
    }
    names: Sequence[str] = args.tasks or (["digits"] if args.smoke else TASKS)
    made: dict[str, Make] = {}
    for name in names:
        try:
            data = load[name]()
        except (FileNotFoundError, ModuleNotFoundError) as error:
            if args.tasks:
                raise SystemExit(f"--tasks {name}: {error}") from None
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        make = _roles if name == "shakespeare" else _pictures
        made[name] = functools.partial(make, data)
    return made


def _pictures(
    data: tasks.Task,
    *,
    num_clients: int,
    width: int,
    concentration: float = CONCENTRATION,
    batch_size: int = 16,
    **_: int,
) -> ClientTask:
    split = lambda labels: tasks.dirichlet_split(labels, num_clients, concentration)
    return comparison.picture_clients(data, split, width=width, batch_size=batch_size)


def _roles(
    data: tasks.Roles,
    *,
    width: int,
    num_windows: int = 8,
    test_windows: int = 4,
    **_: float,
) -> ClientTask:
    return comparison.shakespeare_clients(
        data, width=width, num_windows=num_windows, test_windows=test_windows
    )
