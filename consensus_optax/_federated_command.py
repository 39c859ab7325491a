"""``python -m consensus_optax federated``: many clients, some of them dishonest."""

import argparse
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import consensus_optax as co
from consensus_optax import _registry
from consensus_optax._command_line import (
    INTERRUPTED,
    Progress,
    UsageError,
    add_out,
    count,
    folder,
    left,
    positive,
    told,
    write,
)

PICTURES = ("digits", "mnist_5000", "fashion_mnist")
CLIENT_TASKS = (*PICTURES, "shakespeare")


class _Wire(NamedTuple):
    """How clients send: a code, or None, and whether its error is fed back."""

    code: co.compressors.Compressor | None
    error_feedback: bool = False


def wires() -> dict[str, Callable[..., Any]]:
    """What ``--compress`` may name: codes, and one that has a code inside."""

    def none() -> _Wire:
        """Numbers of four bytes."""
        return _Wire(None)

    def error_feedback(code: Any) -> _Wire:
        """What a code loses is added to the same client's next message."""
        co.error_feedback(code, 1)  # raises, if it cannot be fed back
        return _Wire(code, True)

    own = {"none": none, "error_feedback": error_feedback}
    return {**_registry.compressors(), **own}


def run(args: argparse.Namespace) -> int:
    """Trains, writes and tells; the exit code."""
    from consensus_optax import comparison

    try:
        rules = _registry.parse_rules(args.rules)
        named = _registry.parse_calls(
            args.attacks, comparison.named_attacks(), "attack"
        )
        sent = _registry.parse_calls(args.compress, wires(), "compressor")
        task = _clients(args)
    except (ValueError, FileNotFoundError) as error:
        raise UsageError(str(error)) from None
    if not args.byzantine < args.sampled <= len(task.counts):
        raise UsageError(
            f"--byzantine, --sampled and the number of clients must increase; got "
            f"{args.byzantine}, {args.sampled} and {len(task.counts)}"
        )
    contestants = {}
    for (rule, made), (attack, does), (wire, how) in itertools.product(
        rules.items(), named.items(), sent.items()
    ):
        parts = [rule, *[x for x in (attack, wire) if x != "none"]]
        how = how if isinstance(how, _Wire) else _Wire(how)
        contestants[" / ".join(parts)] = comparison.Contestant(made, does, *how)
    out = folder(args.out, f"runs/federated-{args.task}", overwrite=args.overwrite)
    print(
        f"{task.name}: {len(contestants)} contestant(s) x {args.seeds} seed(s), "
        f"{args.rounds} rounds of {args.sampled} of {len(task.counts)} clients",
        flush=True,
    )
    num = len(contestants)
    with Progress(args.rounds * num, num, "round") as progress:
        result = comparison.federate(
            task,
            contestants,
            rounds=args.rounds,
            seeds=args.seeds,
            num_sampled=args.sampled,
            num_byzantine=args.byzantine,
            num_steps=args.local_steps,
            local_rate=args.local_rate,
            rate=args.rate,
            progress=progress,
        )
    result.settings["split"] = args.split
    if not left(result.failed, result.curves, result.interrupted):
        return INTERRUPTED if result.interrupted else 2
    text = comparison.federated_table(result)
    write(out, text, comparison.federated_json(result))
    comparison.save_federated_plot(result, out / "curves.png")
    return told(out, text, result.interrupted, True)


def _clients(args: argparse.Namespace) -> Any:
    """The task of many clients."""
    from consensus_optax import comparison, tasks

    if args.task not in CLIENT_TASKS:
        known = ", ".join(CLIENT_TASKS)
        raise UsageError(f"unknown task {args.task!r}; known: {known}")
    if args.task == "shakespeare":
        if args.split not in (None, "roles") or args.clients is not None:
            raise UsageError(
                "--split and --clients belong to tasks of pictures: Shakespeare's "
                "clients are his roles"
            )
        args.split = "roles"
        return comparison.shakespeare_clients(tasks.shakespeare())
    many, shift = args.clients or 40, 0.0

    def noise(strength: float = 1.0) -> Any:
        nonlocal shift
        shift = strength
        return lambda labels: tasks.even_split(len(labels), many)

    splits = {
        "even": lambda: lambda y: tasks.even_split(len(y), many),
        "dirichlet": lambda a=0.3: lambda y: tasks.dirichlet_split(y, many, a),
        "shards": lambda each=2: lambda y: tasks.shard_split(y, many, each),
        "quantity": lambda a=0.5: lambda y: tasks.quantity_split(len(y), many, a),
        "noise": noise,
    }
    args.split = args.split or "dirichlet(0.3)"
    found = list(_registry.parse_calls(args.split, splits, "split").values())
    if len(found) != 1:
        raise UsageError(f"--split takes one split; got {args.split!r}")
    pictures = getattr(tasks, args.task)()
    return comparison.picture_clients(pictures, found[0], shift=shift)


def add_to(commands: Any) -> None:
    """Adds the command to the parser of all."""
    federated = commands.add_parser(
        "federated",
        help="train on many clients, some of them dishonest, with several rules",
        description="Federated rounds with every rule against every attack, by every "
        "wire; prints a table, writes results.json, table.md and curves.png.",
    )
    add = federated.add_argument
    add(
        "--task",
        default="digits",
        help=f"{', '.join(CLIENT_TASKS)} (default: %(default)s)",
    )
    add(
        "--rules",
        default="mean,median",
        help="comma list as for compare, e.g. 'mean,krum(4)' (default: %(default)s)",
    )
    add(
        "--attacks",
        default="none",
        help="comma list, e.g. 'none,label_flip,strongest_alie'; --list names them",
    )
    add(
        "--split",
        help="pictures: even, dirichlet(alpha), shards(each), quantity(alpha) or "
        "noise(strength) (default: dirichlet(0.3))",
    )
    add(
        "--compress",
        default="none",
        help="comma list, e.g. 'top_k(0.01),error_feedback(top_k(0.01))'; --list",
    )
    add("--clients", type=positive(int), help="pictures: how many (default: 40)")
    add("--sampled", type=positive(int), default=20, help="of a round (default: 20)")
    add("--byzantine", type=count, default=4, help="attackers of a round (default: 4)")
    add("--rounds", type=positive(int), default=40, help="default: %(default)s")
    add("--seeds", type=positive(int), default=3, help="default: %(default)s")
    add("--local-steps", type=positive(int), default=5, help="default: %(default)s")
    add("--local-rate", type=positive(float), default=0.3, help="clients' SGD")
    add("--rate", type=positive(float), default=1.0, help="server's SGD")
    add_out(add, "runs/federated-TASK")
    add("--list", action="store_true", help="list names, then stop")
    federated.set_defaults(run=run)
