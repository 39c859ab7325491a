"""How accurate is federated training for the bytes that its clients send?

    python -m benchmarks.compression --tasks digits --contestants float32 int4

Clients of pictures are unlike (Dirichlet, 0.3); those of Shakespeare are the roles.
Every compressor trains with the mean, from the same parameters and the same clients;
the rate of its server is chosen by the clients' training loss, on a seed that is not
reported, and lies between others that were tried. Rows of earlier runs that are not
made anew stay (`_kept.py`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import consensus_optax as co
from benchmarks import _client_tasks, _harness, _kept
from benchmarks._client_tasks import CONCENTRATION, LOCAL_RATES, TASKS, Make
from benchmarks._harness import Row
from consensus_optax import compressors, training
from consensus_optax.comparison import ClientTask

LADDER = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
RATES = (0.1, 0.3, 1.0, 3.0)  # and on, where one of their ends is best
SPLITS = {"shakespeare": "roles"}  # pictures are shared out
MOMENTUM = 0.9
SHARE = 0.95  # of what is gained without compression: how many bytes does it take?


class Setting(NamedTuple):
    """How large everything is; smoke runs make it tiny."""

    num_clients: int = 100  # of pictures
    num_sampled: int = 20
    num_steps: int = 5
    batch_size: int = 8
    width: int = 64
    rounds: int = 10  # in one program, after which accuracy is looked at
    programs: int = 20
    seeds: int = 3
    test_windows: int = 4


SMOKE = Setting(num_clients=8, num_sampled=4, num_steps=1, batch_size=2, width=4)
SMOKE = SMOKE._replace(rounds=2, programs=2, seeds=2, test_windows=1)


def contestants() -> dict[str, tuple[co.compressors.Compressor | None, bool]]:
    """Compressors, and whether what they lose is fed back."""
    key = jax.random.key(0)
    quantized = functools.partial(compressors.stochastic_quantization, key=key)
    return {
        "float32": (None, False),
        "natural": (compressors.natural(key), False),
        "int8": (quantized(8), False),
        "int4": (quantized(4), False),
        "int4, pieces of 64": (compressors.bucketed(quantized(4), size=64), False),
        "sign": (compressors.scaled_sign(), False),
        "sign, error feedback": (compressors.scaled_sign(), True),
        "top 1 %": (compressors.top_k(0.01), False),
        "top 1 %, error feedback": (compressors.top_k(0.01), True),
        "random 1 %": (compressors.random_k(0.01, key), False),
        "random 1 %, error feedback": (
            compressors.random_k(0.01, key, rescale=False),
            True,
        ),
        "rank 1, error feedback": (compressors.low_rank(1, key), True),
        "rank 4, error feedback": (compressors.low_rank(4, key), True),
    }


def trainer(
    work: ClientTask, code: Any, feedback: bool, local_rate: float, setting: Setting
) -> Callable[[float, int], tuple[list[float], float]]:
    """Accuracies after every program, and the training loss at the end."""
    num_clients = len(work.counts)
    judge = jax.jit(lambda params: work.scores(params)["test_accuracy"])

    def server(rate: Any) -> Any:
        ahead = co.compressed(code) if code else optax.identity()
        ahead = co.error_feedback(code, num_clients) if feedback else ahead
        return optax.chain(ahead, co.mean(), optax.sgd(rate, momentum=MOMENTUM))

    def run(fit: Any, rate: Any, key: Any, clients: Any, counts: Any) -> Any:
        batch_at = training.client_batches(
            key,
            *(clients, counts, work.draw),
            num_sampled=setting.num_sampled,
            num_steps=setting.num_steps,
            as_cohort=True,
        )
        step = training.federated_round(work.loss, server(rate), optax.sgd(local_rate))
        fit, metrics = training.train(step, fit, batch_at, setting.rounds)
        return fit, metrics["loss"].mean(), judge(fit.params)

    jitted = jax.jit(run, donate_argnums=0)

    def train(rate: float, seed: int) -> tuple[list[float], float]:
        fit, key = training.start(work.params(seed), server(rate)), jax.random.key(seed)
        clients, counts = jax.tree.map(jnp.asarray, (work.data, work.counts))
        curve, loss = [float(judge(fit.params))], math.nan
        for _ in range(setting.programs):
            arguments = jnp.float32(rate), key, clients, counts
            fit, loss, accuracy = jitted(fit, *arguments)
            curve.append(float(accuracy))
        return curve, float(loss)

    return train


def best(tried: Mapping[float, float]) -> float:
    """The rate of the least loss; the lowest if none is finite."""
    finite = {rate: loss for rate, loss in tried.items() if math.isfinite(loss)}
    return min(finite, key=finite.__getitem__) if finite else min(tried)


def tuned(
    train: Callable[[float, int], tuple[list[float], float]], seed: int
) -> dict[float, float]:
    """Losses by rate, of so many that the best one lies between others."""
    loss_at = lambda rate: train(rate, seed)[1]
    tried = {rate: loss_at(rate) for rate in RATES}
    while True:
        place = LADDER.index(best(tried))
        beside = [r for r in LADDER[max(place - 1, 0) : place + 2] if r not in tried]
        if not beside:
            return tried
        tried |= {rate: loss_at(rate) for rate in beside}


def run(
    setting: Setting, made: Mapping[str, Make], codes: Sequence[str], done: _kept.Done
) -> Iterator[Row]:
    """Compressors on tasks, with some seeds."""
    for task, make in made.items():
        work = make(
            num_clients=setting.num_clients,
            width=setting.width,
            batch_size=setting.batch_size,
            num_windows=setting.batch_size,
            test_windows=setting.test_windows,
        )
        for name in codes:
            if done(task=task, contestant=name):
                continue
            code, feedback = contestants()[name]
            train = trainer(work, code, feedback, LOCAL_RATES[task], setting)
            tried = tuned(train, setting.seeds)
            rate = best(tried)
            curves = [train(rate, seed)[0] for seed in range(setting.seeds)]
            params = work.params(0)
            size = sum(leaf.size for leaf in jax.tree.leaves(params))
            yield {
                "benchmark": "compression",
                "task": task,
                "contestant": name,
                "bytes_each": code.num_bytes(params) if code else 4 * size,
                "params": size,
                "rate": rate,
                "training_loss_by_rate": {
                    str(rate): round(loss, 4) if math.isfinite(loss) else None
                    for rate, loss in sorted(tried.items())
                },
                "num_rounds": [setting.rounds * i for i in range(len(curves[0]))],
                "accuracy": [[round(x, 4) for x in curve] for curve in curves],
                "num_clients": len(work.counts),
                "num_sampled": setting.num_sampled,
                "split": SPLITS.get(task, f"dirichlet({CONCENTRATION})"),
            }


def place(row: Row) -> tuple[Any, ...]:
    """By task and compressor."""
    return TASKS.index(row["task"]), [*contestants()].index(row["contestant"])


def bytes_to(row: Row, accuracy: float) -> float | None:
    """Bytes that one client of every round has sent when the mean is that accurate."""
    mean = np.mean(row["accuracy"], 0)
    reached = np.flatnonzero(mean >= accuracy)
    if not reached.size:
        return None
    return row["bytes_each"] * row["num_rounds"][reached[0]]


def target_of(rows: Sequence[Row], task: str) -> float | None:
    """The accuracy that bytes are counted up to; None before there is float32."""
    plain = [r for r in rows if (r["task"], r["contestant"]) == (task, "float32")]
    if not plain:
        return None
    curve = np.mean(plain[0]["accuracy"], 0)
    return float(curve[0] + SHARE * (curve.max() - curve[0]))


def table(rows: Sequence[Row]) -> str:
    """Markdown: by task, one line for every compressor."""
    parts = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        goal = target_of(rows, task)
        heads = ["a client's message", "bytes", "to float32", "accuracy, %", "rate"]
        heads.append("KB" if goal is None else f"KB to {100 * goal:.1f} %")
        first = own[0]
        told = f"{task}: {first['num_clients']} clients, {first['split']}, after "
        lines = [f"{told}{first['num_rounds'][-1]} rounds", ""]
        lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for row in own:
            needed = None if goal is None else bytes_to(row, goal)
            cells = [
                row["contestant"],
                f"{row['bytes_each']:,}",
                f"{row['bytes_each'] / (4 * row['params']):.3f}",
                _kept.percent([curve[-1] for curve in row["accuracy"]]),
                f"{row['rate']:g}",
                "not reached" if needed is None else f"{needed / 1000:,.0f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Accuracy over the bytes that a client has sent that is in every round."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["task"] for row in rows))
    figure, axes = plt.subplots(
        1, len(names), figsize=(6 * len(names), 4.5), squeeze=False
    )
    for axis, task in zip(axes[0], names, strict=True):
        axis.set_prop_cycle(color=plt.colormaps["tab20"].colors)
        for row in rows:
            if row["task"] == task:
                sent = np.array(row["num_rounds"][1:]) * row["bytes_each"]
                style = "-" if "feedback" in row["contestant"] else "--"
                style = ":" if row["contestant"] == "float32" else style
                mean = 100 * np.mean(row["accuracy"], 0)[1:]
                axis.plot(sent, mean, style, label=row["contestant"], linewidth=1.3)
        axis.set_xscale("log")
        axis.set_xlabel("bytes sent by a client of every round")
        axis.set_title(f"{task}: accuracy, %", fontsize=10)
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


KIND = _kept.Kind("compression", place, table, plot)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes ``compression.json``, ``compression.md`` and ``compression.png``."""
    options = _harness.parser(__doc__)
    known = tuple(contestants())
    options.add_argument("--contestants", choices=known, nargs="+")
    _client_tasks.add_options(options)
    _kept.add_options(options)
    args = _harness.parse(options, argv)
    setting = SMOKE if args.smoke else Setting()
    few = ("float32", "int4", "rank 1, error feedback")
    names = args.contestants or (few if args.smoke else known)
    make = lambda done: run(setting, _client_tasks.asked_for(args), names, done)
    _kept.keep(KIND, args, make)


if __name__ == "__main__":
    main()
