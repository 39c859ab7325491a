"""How accurate is federated training for the bytes that its clients send?

    python -m benchmarks.compression --tasks digits

Clients of the digits have two classes each; those of Shakespeare are the roles. Every
compressor trains with the mean, from the same parameters and the same clients; the rate
of its server is chosen by the clients' training loss, on a seed that is not reported.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import consensus_optax as co
from benchmarks import _harness, _private_digits, _rounds
from benchmarks._harness import Row
from consensus_optax import compressors, tasks, training

RATES = (0.1, 0.3, 1.0)
LOCAL_RATES = {"digits": 0.1, "shakespeare": 1.0}
MOMENTUM = 0.9
SHARE = 0.95  # of what is gained without compression: how many bytes does it take?


class Setting(NamedTuple):
    """How large everything is; smoke runs make it tiny."""

    num_clients: int = 100  # of the digits
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


class Problem(NamedTuple):
    """Functions of the parameters, and the clients' data."""

    params: Callable[[int], Any]  # by seed
    loss: Callable[[Any, Any], jax.Array]
    draw: Callable[..., Any]
    clients: Any
    counts: Any
    accuracy: Callable[[Any], jax.Array]


def digits(setting: Setting) -> Problem:
    """Examples sorted by class and cut into two shards for every client."""
    task = tasks.digits()
    pixels, labels = (np.asarray(x[0]) for x in (task.train.inputs, task.train.targets))
    shards = 2 * setting.num_clients
    each = len(labels) // shards
    order = np.argsort(labels, kind="stable")[: each * shards].reshape(shards, each)
    mixed = np.random.default_rng(0).permutation(shards)
    order = order[mixed].reshape(setting.num_clients, 2 * each)
    test = task.test.inputs[0], jnp.asarray(task.test.targets[0])

    def accuracy(params: Any) -> jax.Array:
        found = jnp.argmax(_private_digits.logits(params, test[0]), -1)
        return jnp.mean(found == test[1])

    return Problem(
        lambda seed: _private_digits.initial(jax.random.key(seed), setting.width),
        _private_digits.loss,
        functools.partial(training.draw_examples, batch_size=setting.batch_size),
        (pixels[order], labels[order]),
        np.full(setting.num_clients, 2 * each, np.int32),
        accuracy,
    )


def shakespeare(setting: Setting) -> Problem:
    """The roles, of whom each round samples some."""
    sizes = _rounds.Setting(
        num_clients=setting.num_sampled,
        num_windows=setting.batch_size,
        width=setting.width,
        test_windows=setting.test_windows,
    )
    roles = tasks.shakespeare()
    work = _rounds.problem(roles, sizes)
    accuracy = jax.jit(lambda params: work.scores(params)["test_accuracy"])
    return Problem(work.params, work.loss, work.draw, work.data, work.counts, accuracy)


TASKS = {"digits": digits, "shakespeare": shakespeare}


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
    work: Problem, code: Any, feedback: bool, local_rate: float, setting: Setting
) -> Callable[[float, int], tuple[list[float], float]]:
    """Accuracies after every program, and the training loss at the end."""
    num_clients = len(work.counts)

    def server(rate: Any) -> Any:
        ahead = co.compressed(code) if code else optax.identity()
        ahead = co.error_feedback(code, num_clients) if feedback else ahead
        return optax.chain(ahead, co.mean(), optax.sgd(rate, momentum=MOMENTUM))

    def run(fit: Any, rate: Any, key: Any, clients: Any, counts: Any) -> Any:
        batch_at = training.client_batches(
            key,
            clients,
            counts,
            work.draw,
            num_sampled=setting.num_sampled,
            num_steps=setting.num_steps,
            as_cohort=True,
        )
        step = training.federated_round(work.loss, server(rate), optax.sgd(local_rate))
        fit, metrics = training.train(step, fit, batch_at, setting.rounds)
        return fit, metrics["loss"].mean(), work.accuracy(fit.params)

    jitted = jax.jit(run, donate_argnums=0)

    def train(rate: float, seed: int) -> tuple[list[float], float]:
        fit, key = training.start(work.params(seed), server(rate)), jax.random.key(seed)
        curve, loss = [float(work.accuracy(fit.params))], math.nan
        for _ in range(setting.programs):
            arguments = jnp.float32(rate), key, work.clients, work.counts
            fit, loss, accuracy = jitted(fit, *arguments)
            curve.append(float(accuracy))
        return curve, float(loss)

    return train


def run(setting: Setting, names: Sequence[str], codes: Sequence[str]) -> list[Row]:
    """Compressors on tasks, with some seeds."""
    rows = []
    for task in names:
        work = TASKS[task](setting)
        for name in codes:
            code, feedback = contestants()[name]
            train = trainer(work, code, feedback, LOCAL_RATES[task], setting)
            tried = {rate: train(rate, setting.seeds)[1] for rate in RATES}
            finite = {rate: loss for rate, loss in tried.items() if math.isfinite(loss)}
            rate = min(finite, key=finite.__getitem__) if finite else RATES[0]
            curves = [train(rate, seed)[0] for seed in range(setting.seeds)]
            params = work.params(0)
            size = sum(leaf.size for leaf in jax.tree.leaves(params))
            rows.append(
                {
                    "benchmark": "compression",
                    "task": task,
                    "contestant": name,
                    "bytes_each": code.num_bytes(params) if code else 4 * size,
                    "params": size,
                    "rate": rate,
                    "training_loss_by_rate": {
                        str(rate): round(loss, 4) if math.isfinite(loss) else None
                        for rate, loss in tried.items()
                    },
                    "num_rounds": [setting.rounds * i for i in range(len(curves[0]))],
                    "accuracy": [[round(x, 4) for x in curve] for curve in curves],
                    "num_sampled": setting.num_sampled,
                }
            )
            _harness.show(rows[-1])
    return rows


def bytes_to(row: Row, accuracy: float) -> float | None:
    """Bytes that one client of every round has sent when the mean is that accurate."""
    mean = np.mean(row["accuracy"], 0)
    reached = np.flatnonzero(mean >= accuracy)
    if not reached.size:
        return None
    return row["bytes_each"] * row["num_rounds"][reached[0]]


def _of(rows: Sequence[Row], task: str, name: str) -> Row:
    """The row of one contestant on one task."""
    return next(x for x in rows if (x["task"], x["contestant"]) == (task, name))


def target_of(rows: Sequence[Row], task: str) -> float:
    """The accuracy that bytes are counted up to."""
    curve = np.mean(_of(rows, task, "float32")["accuracy"], 0)
    return float(curve[0] + SHARE * (curve.max() - curve[0]))


def table(rows: Sequence[Row]) -> str:
    """Markdown: one line for every compressor, for every task its columns."""
    names = list(dict.fromkeys(row["task"] for row in rows))
    heads = [
        f"{task}: bytes | to float32 | accuracy, % | KB to {100 * goal:.1f} %"
        for task in names
        for goal in [target_of(rows, task)]
    ]
    lines = ["| a client's message | " + " | ".join(heads) + " |"]
    lines.append("|---" * (4 * len(names) + 1) + "|")
    for name in dict.fromkeys(row["contestant"] for row in rows):
        cells = []
        for task in names:
            row = _of(rows, task, name)
            ends = [100 * curve[-1] for curve in row["accuracy"]]
            spread = (max(ends) - min(ends)) / 2
            needed = bytes_to(row, target_of(rows, task))
            cells += [
                f"{row['bytes_each']:,}",
                f"{row['bytes_each'] / (4 * row['params']):.3f}",
                f"{statistics.mean(ends):.1f} ± {spread:.1f}",
                "not reached" if needed is None else f"{needed / 1000:,.0f}",
            ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


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


def main(argv: Sequence[str] | None = None) -> None:
    """Writes ``compression.json``, ``compression.md`` and ``compression.png``."""
    options = _harness.parser(__doc__)
    options.add_argument("--tasks", choices=tuple(TASKS), nargs="+", default=[*TASKS])
    args = _harness.parse(options, argv)
    names = [*contestants()]
    if args.smoke:
        names = ["float32", "int4", "rank 1, error feedback"]
    rows = run(SMOKE if args.smoke else Setting(), args.tasks, names)
    env = _harness.environment("flax")
    earlier = _harness.read("compression", args.out)
    rows = [{**row, **env} for row in rows]
    rows += [row for row in earlier if row["task"] not in args.tasks]
    rows.sort(key=lambda row: list(TASKS).index(row["task"]))
    _harness.write("compression", rows, {}, args.out)
    (args.out / "compression.md").write_text(table(rows) + "\n", encoding="utf-8")
    plot(rows, args.out / "compression.png")


if __name__ == "__main__":
    main()
