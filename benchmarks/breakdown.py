"""How many dishonest clients does a rule bear, if each attack is as strong as can be?

    python -m benchmarks.breakdown --tasks digits --rules mean median --shares 0.4

Accuracy against the share of attackers in every round, for every robust rule under
every attack; those whose strength is searched face the rule's own update in each round.
The same server for all: rates are not tuned, so rules are to be compared with
themselves. Rows of earlier runs that are not made anew stay (`_kept.py`).
Clients of pictures are unlike (Dirichlet, 0.3), those of Shakespeare are the roles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

import consensus_optax as co
from benchmarks import _client_tasks, _harness, _kept
from benchmarks._client_tasks import LOCAL_RATES, TASKS, Make
from benchmarks._harness import Row
from consensus_optax import comparison
from consensus_optax.comparison import Contestant

SHARES = (0.1, 0.2, 0.4)
SHORT = MappingProxyType(
    {
        "strongest_alie": "ALIE",
        "strongest_ipm": "IPM",
        "label_flip": "labels",
        "sign_flip": "signs",
        "mimic": "mimic",
        "silence": "silence",
    }
)
ATTACKS = tuple(SHORT)
ROUNDS = MappingProxyType({"digits": 60, "fashion_mnist": 60, "shakespeare": 100})


class Setting(NamedTuple):
    """How large everything is; smoke runs make it tiny."""

    num_sampled: int = 20
    num_clients: int = 60  # of pictures
    num_steps: int = 5
    rounds: Mapping[str, int] = ROUNDS
    seeds: int = 3
    width: int = 64


SMOKE = Setting(num_sampled=5, num_clients=6, num_steps=1, seeds=2, width=4)
SMOKE = SMOKE._replace(rounds=dict.fromkeys(TASKS, 2))


def rules(f: int, n: int) -> dict[str, Callable[[], co.Reducer]]:
    """Each told how many attack; what asks for more honest rows is left out.

    The row that is trusted, where one is, is an honest client's.
    """
    nearest = lambda: co.nearest_neighbor_mixing(f)
    return {
        "mean": co.mean,
        "median": co.median,
        "trimmed mean": lambda: co.trimmed_mean(f),
        "winsorized mean": lambda: co.winsorized_mean(f / n),
        "mean around median": lambda: co.mean_around_median(f),
        "Krum": lambda: co.krum(f),
        "Multi-Krum": lambda: co.krum(f, n - f),
        "Bulyan": lambda: co.bulyan(f),
        "minimum diameter": lambda: co.minimum_diameter(f),
        "SMEA": lambda: co.smea(f),
        "geometric median": co.geometric_median,
        "NNM, geometric median": lambda: co.after(nearest(), co.geometric_median()),
        "NNM, trimmed mean": lambda: co.after(nearest(), co.trimmed_mean(f)),
        "ARC, median": lambda: co.after(co.adaptive_clipping(f), co.median()),
        "centered clipping": lambda: co.centered_clipping(1.0),
        "comparative elimination": lambda: co.comparative_elimination(f),
        "divide and conquer": lambda: co.divide_and_conquer(f),
        "CAF": lambda: co.caf(f),
        "trusted row": lambda: co.trusted_row(0),
        "MoNNA": lambda: co.monna(f, 0),
    }


def run(
    setting: Setting,
    made: Mapping[str, Make],
    shares: Sequence[float],
    names: Sequence[str],
    some: Sequence[str],
    done: _kept.Done,
) -> Iterator[Row]:
    """Every rule under every attack, by every share of attackers; one at a time."""
    attacks = comparison.named_attacks()
    n = setting.num_sampled
    for task, make in made.items():
        work = make(num_clients=setting.num_clients, width=setting.width)
        for share in shares:
            f = max(1, round(share * n))
            # told of as many as there are; if there are none, of the fewest
            asked = [(attack, share) for attack in some]
            asked += [("none", 0.0)] if share == min(SHARES) else []
            for name in names:
                given = {
                    attack: its
                    for attack, its in asked
                    if not done(task=task, contestant=name, attack=attack, share=its)
                }
                if not given:
                    continue
                rule = rules(f, n)[name]()
                result = comparison.federate(
                    work,
                    {x: Contestant(rule, attacks[x]()) for x in given},
                    rounds=setting.rounds[task],
                    seeds=setting.seeds,
                    num_sampled=n,
                    num_byzantine=f,
                    num_steps=setting.num_steps,
                    local_rate=LOCAL_RATES[task],
                    num_evaluations=1,
                )
                if result.interrupted:
                    raise KeyboardInterrupt
                for attack, its in given.items():
                    yield {
                        "benchmark": "breakdown",
                        "task": task,
                        "contestant": name,
                        "attack": attack,
                        "share": its,
                        "accuracy": accuracies(result, attack),
                        "left_out": result.failed.get(attack),
                        **result.settings,
                    }


def accuracies(result: comparison.Federation, attack: str) -> list[float] | None:
    """In the end, of every seed; None where the rule cannot be."""
    curves = result.curves.get(attack)
    if curves is None:
        return None
    return [round(float(x), 4) for x in curves["test_accuracy"][-1, 0]]


def place(row: Row) -> tuple[Any, ...]:
    """By task, share, rule and attack."""
    return (
        TASKS.index(row["task"]),
        row["share"],
        [*rules(1, 20)].index(row["contestant"]),
        ("none", *ATTACKS).index(row["attack"]),
    )


def cell(rows: Sequence[Row]) -> str:
    """Mean over seeds and half the range, in per cent; - where the rule cannot be."""
    accuracy = rows[0]["accuracy"] if rows else None
    return "-" if accuracy is None else _kept.percent(accuracy)


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
                attack = SHORT[found["attack"]] if found and share else ""
                cells.append(f"{text} {attack}".strip())
            lines.append(f"| {name} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def plot(rows: Sequence[Row], path: Path) -> None:
    """A line of panels for each task, a panel for each attack; bars from seed to seed.

    What stands at 0 % is without attack.
    """
    import matplotlib.pyplot as plt

    lines = list(dict.fromkeys(row["task"] for row in rows))
    columns = [x for x in ATTACKS if any(row["attack"] == x for row in rows)]
    figure, grid = plt.subplots(
        *(len(lines), len(columns)),
        figsize=(3.1 * len(columns), 2.7 * len(lines) + 1.0),
        squeeze=False,
        sharex=True,
        sharey="row",
    )
    names = [x for x in rules(1, 20) if any(row["contestant"] == x for row in rows)]
    colors = plt.colormaps["tab20"].colors
    handles = {}
    for line, task in enumerate(lines):
        for column, attack in enumerate(columns):
            axes = grid[line][column]
            for number, name in enumerate(names):
                points = [
                    (100 * row["share"], 100 * np.array(row["accuracy"]))
                    for row in rows
                    if (row["task"], row["contestant"]) == (task, name)
                    and row["attack"] in (attack, "none")
                    and row["accuracy"] is not None
                ]
                if not points:
                    continue
                x = np.array([share for share, _ in points])
                y = np.array([accuracy for _, accuracy in points])
                aside = 0.12 * (number - len(names) / 2)  # bars beside each other
                ends = np.abs([y.min(1) - y.mean(1), y.max(1) - y.mean(1)])
                color = colors[number % len(colors)]
                style = {"color": color, "linewidth": 1.2, "elinewidth": 0.6}
                handles[name] = axes.errorbar(x + aside, y.mean(1), ends, **style)
            axes.set_title(f"{task}, {attack}", fontsize=9)
        grid[line][0].set_ylabel("accuracy, %", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("attackers, %", fontsize=8)
    figure.legend(handles.values(), handles, loc="lower center", ncols=5, fontsize=8)
    figure.tight_layout(rect=(0, 0.8 / (2.7 * len(lines) + 1.0), 1, 1))
    figure.savefig(path, dpi=66)
    plt.close(figure)


KIND = _kept.Kind("breakdown", place, table, plot)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes ``breakdown.json``, ``breakdown.md`` and ``breakdown.png``."""
    options = _harness.parser(__doc__)
    known = tuple(rules(1, 20))
    options.add_argument("--rules", choices=known, nargs="+")
    options.add_argument("--attacks", choices=ATTACKS, nargs="+")
    options.add_argument("--shares", type=float, choices=SHARES, nargs="+")
    _client_tasks.add_options(options)
    _kept.add_options(options)
    args = _harness.parse(options, argv)
    setting = SMOKE if args.smoke else Setting()
    names = args.rules or (known[:2] if args.smoke else known)
    some = args.attacks or (ATTACKS[:2] if args.smoke else ATTACKS)
    shares = args.shares or SHARES
    made = _client_tasks.asked_for
    make = lambda done: run(setting, made(args), shares, names, some, done)
    _kept.keep(KIND, args, make)


if __name__ == "__main__":
    main()
