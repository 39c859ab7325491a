"""How many dishonest clients does a rule bear, if each attack is as strong as can be?

    python -m benchmarks.breakdown --tasks digits --rules mean median --shares 0.4

Accuracy against the share of attackers in every round, for every robust rule under
every attack; those whose strength is searched face the rule's own update in each round.
The same server for all: rates are not tuned, so rules are to be compared with
themselves. Rows of earlier runs that are not made anew stay.
Clients of the digits are unlike (Dirichlet, 0.3), those of Shakespeare are the roles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

import consensus_optax as co
from benchmarks import _harness
from benchmarks._harness import Row
from consensus_optax import comparison, tasks
from consensus_optax.comparison import ClientTask, Contestant

SHARES = (0.1, 0.2, 0.4)
ATTACKS = ("strongest_alie", "strongest_ipm", "label_flip", "sign_flip", "mimic")
ATTACKS += ("silence",)

LOCAL_RATES = MappingProxyType({"digits": 0.1, "shakespeare": 1.0})


class Setting(NamedTuple):
    """How large everything is; smoke runs make it tiny."""

    num_sampled: int = 20
    num_clients: int = 60  # of the digits
    num_steps: int = 5
    rounds: Mapping[str, int] = MappingProxyType({"digits": 60, "shakespeare": 100})
    local_rates: Mapping[str, float] = LOCAL_RATES
    seeds: int = 3
    width: int = 64


SMOKE = Setting(num_sampled=5, num_clients=6, num_steps=1, seeds=2, width=4)
SMOKE = SMOKE._replace(rounds={"digits": 2, "shakespeare": 2})


def rules(f: int, n: int) -> dict[str, Callable[[], co.Reducer]]:
    """Each told how many attack; what asks for more honest rows is left out."""
    nearest = lambda: co.nearest_neighbor_mixing(f)
    return {
        "mean": co.mean,
        "median": co.median,
        "trimmed mean": lambda: co.trimmed_mean(f),
        "mean around median": lambda: co.mean_around_median(f),
        "Krum": lambda: co.krum(f),
        "Multi-Krum": lambda: co.krum(f, n - f),
        "Bulyan": lambda: co.bulyan(f),
        "geometric median": co.geometric_median,
        "NNM, geometric median": lambda: co.after(nearest(), co.geometric_median()),
        "NNM, trimmed mean": lambda: co.after(nearest(), co.trimmed_mean(f)),
        "ARC, median": lambda: co.after(co.adaptive_clipping(f), co.median()),
        "centered clipping": lambda: co.centered_clipping(1.0),
        "comparative elimination": lambda: co.comparative_elimination(f),
        "divide and conquer": lambda: co.divide_and_conquer(f),
        "CAF": lambda: co.caf(f),
    }


def digits(setting: Setting) -> ClientTask:
    """Clients who have few classes each."""
    split = lambda labels: tasks.dirichlet_split(labels, setting.num_clients, 0.3)
    return comparison.digits_clients(split, width=setting.width)


def shakespeare(setting: Setting) -> ClientTask:
    """The roles."""
    return comparison.shakespeare_clients(tasks.shakespeare(), width=setting.width)


TASKS = {"digits": digits, "shakespeare": shakespeare}


def run(
    setting: Setting,
    of_tasks: Sequence[str],
    shares: Sequence[float],
    names: Sequence[str],
    some: Sequence[str],
) -> Iterator[list[Row]]:
    """Every rule under every attack, by every share of attackers; one at a time."""
    made = comparison.named_attacks()
    n = setting.num_sampled
    for task in of_tasks:
        work = TASKS[task](setting)
        for share in shares:
            f = max(1, round(share * n))
            # told of as many as there are; if there are none, of the fewest
            given = ("none", *some) if share == min(SHARES) else some
            for name in names:
                rule = rules(f, n)[name]()
                result = comparison.federate(
                    work,
                    {attack: Contestant(rule, made[attack]()) for attack in given},
                    rounds=setting.rounds[task],
                    seeds=setting.seeds,
                    num_sampled=n,
                    num_byzantine=f,
                    num_steps=setting.num_steps,
                    local_rate=setting.local_rates[task],
                    num_evaluations=1,
                )
                yield [
                    {
                        "benchmark": "breakdown",
                        "task": task,
                        "contestant": name,
                        "attack": attack,
                        "share": share if attack != "none" else 0.0,
                        "accuracy": accuracies(result, attack),
                        "left_out": result.failed.get(attack),
                        **result.settings,
                    }
                    for attack in given
                ]


def accuracies(result: comparison.Federation, attack: str) -> list[float] | None:
    """In the end, of every seed; None where the rule cannot be."""
    curves = result.curves.get(attack)
    if curves is None:
        return None
    return [round(float(x), 4) for x in curves["test_accuracy"][-1, 0]]


def joined(fresh: Sequence[Row], earlier: Sequence[Row]) -> list[Row]:
    """Rows of this run, and of earlier ones that it has not made anew, in order."""
    what = lambda row: tuple(
        row[key] for key in ("task", "contestant", "attack", "share")
    )
    known = [*rules(1, 20)]
    rows = [*{what(row): row for row in [*earlier, *fresh]}.values()]
    place = lambda row: (
        list(TASKS).index(row["task"]),
        row["share"],
        known.index(row["contestant"]),
        ("none", *ATTACKS).index(row["attack"]),
    )
    return sorted(rows, key=place)


def cell(rows: Sequence[Row]) -> str:
    """Mean over seeds and half the range, in per cent; - where the rule cannot be."""
    accuracy = rows[0]["accuracy"] if rows else None
    if accuracy is None:
        return "-"
    percent = 100 * np.array(accuracy)
    return f"{percent.mean():.1f} ± {np.ptp(percent) / 2:.1f}"


def worst(rows: Sequence[Row]) -> Row | None:
    """Of one rule and share, the row of the attack that leaves least."""
    known = [row for row in rows if row["accuracy"] is not None]
    return min(known, key=lambda row: np.mean(row["accuracy"]), default=None)


def table(rows: Sequence[Row]) -> str:
    """Markdown: by task, a line for each rule: its worst attack at every share."""
    parts = []
    for task in dict.fromkeys(row["task"] for row in rows):
        lines = [f"{task}: accuracy in % under the worst attack, with which it is", ""]
        heads = [f"{100 * share:.0f} %" for share in (0.0, *SHARES)]
        lines.append(f"| rule | {' | '.join(heads)} |")
        lines.append("|---" * (len(heads) + 1) + "|")
        own = [row for row in rows if row["task"] == task]
        for name in dict.fromkeys(row["contestant"] for row in own):
            cells = []
            for share in (0.0, *SHARES):
                found = worst(
                    [r for r in own if (r["contestant"], r["share"]) == (name, share)]
                )
                text = cell([found] if found else [])
                attack = found["attack"] if found and share else ""
                cells.append(f"{text} {attack}".strip())
            lines.append(f"| {name} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def plot(rows: Sequence[Row], path: Path) -> None:
    """A panel for each task and attack: accuracy against the share of attackers."""
    import matplotlib.pyplot as plt

    shown = dict.fromkeys((r["task"], r["attack"]) for r in rows if r["share"])
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure, grid = plt.subplots(
        lines,
        columns,
        figsize=(4.4 * columns, 3.1 * lines + 1.1),
        squeeze=False,
        sharey=True,
    )
    names = list(dict.fromkeys(row["contestant"] for row in rows))
    colors = plt.colormaps["tab20"].colors
    for axes, (task, attack) in zip(grid.flat, shown, strict=False):
        for number, name in enumerate(names):
            points = [
                (100 * row["share"], 100 * np.array(row["accuracy"]))
                for row in rows
                if (row["task"], row["contestant"]) == (task, name)
                and row["attack"] in (attack, "none")
                and row["accuracy"] is not None
            ]
            x = np.array([share for share, _ in points])
            y = np.array([accuracy for _, accuracy in points])
            if not points:
                continue
            style = {"label": name, "color": colors[number % len(colors)]}
            axes.plot(x, y.mean(1), "o-", linewidth=1.4, markersize=3, **style)
            axes.fill_between(x, y.min(1), y.max(1), color=style["color"], alpha=0.08)
        axes.set_title(f"{task}, {attack}: accuracy, %", fontsize=9)
        axes.set_xlabel("attackers, %", fontsize=8)
    for axes in [*grid.flat][len(shown) :]:
        axes.set_visible(False)
    handles = grid[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="lower center", ncols=5, fontsize=8)
    figure.tight_layout(rect=(0, 0.8 / (3.1 * lines + 1.1), 1, 1))
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes ``breakdown.json``, ``breakdown.md`` and ``breakdown.png``."""
    options = _harness.parser(__doc__)
    known = tuple(rules(1, 20))
    options.add_argument("--rules", choices=known, nargs="+")
    options.add_argument("--attacks", choices=ATTACKS, nargs="+")
    options.add_argument("--tasks", choices=tuple(TASKS), nargs="+")
    options.add_argument("--shares", type=float, choices=SHARES, nargs="+")
    args = _harness.parse(options, argv)
    setting = SMOKE if args.smoke else Setting()
    names = args.rules or (known[:2] if args.smoke else known)
    some = args.attacks or (ATTACKS[:2] if args.smoke else ATTACKS)
    of_tasks = args.tasks or (["digits"] if args.smoke else [*TASKS])
    env = _harness.environment("flax")
    rows = _harness.read("breakdown", args.out)
    for fresh in run(setting, of_tasks, args.shares or SHARES, names, some):
        for row in fresh:
            _harness.show(row)
        # what is finished stays if this takes too long
        rows = joined([{**row, **env} for row in fresh], rows)
        _harness.write("breakdown", rows, {}, args.out)
    (args.out / "breakdown.md").write_text(table(rows) + "\n", encoding="utf-8")
    plot(rows, args.out / "breakdown.png")


if __name__ == "__main__":
    main()
