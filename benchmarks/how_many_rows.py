"""How many rows does a rule want? Digits, rule by rule, at one batch size.

    python -m benchmarks.how_many_rows --seeds 10

The same 64 examples in each step, cut into 64, 16, 8, 4 or 2 rows; the accuracy on the
test set after 150 steps of Adam, over seeds, each with its own split, start and
batches. Nothing is tuned to a rule. Writes ``how_many_rows.json`` and ``.md``.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import consensus_optax as co
from benchmarks import _harness
from benchmarks._harness import Row
from benchmarks._private_digits import initial, logits, loss
from consensus_optax import tasks, training


class Setting(NamedTuple):
    """A run; Adam's rate is what the README's first example has."""

    batch_size: int = 64
    num_steps: int = 150
    rate: float = 1e-2
    width: int = 64
    seeds: int = 10


ROWS = (64, 16, 8, 4, 2)
RULES = {
    "plain Adam": None,
    "sign_consensus()": co.sign_consensus,
    "sign_consensus(quorum=0.7)": lambda: co.sign_consensus(0.7),
    "cosine_filter()": co.cosine_filter,
    "subspace_weighting()": co.subspace_weighting,
    "upgrad()": co.upgrad,
}


def run(name: str, num_rows: int, setting: Setting) -> Row:
    """Accuracies of one rule on so many rows."""
    make = RULES[name]
    problems = [tasks.digits(seed=seed) for seed in range(setting.seeds)]
    stack = lambda part: tuple(
        jnp.stack([getattr(getattr(p, part), field)[0] for p in problems])
        for field in ("inputs", "targets")
    )
    adam = optax.adam(setting.rate)
    optimizer = adam if make is None else optax.chain(make(), adam)
    value_and_grad = (
        jax.value_and_grad(loss)
        if make is None
        else co.per_example_value_and_grad(loss, num_rows=num_rows)
    )

    def trained(key: jax.Array, train: Any, test: Any) -> Any:
        data = train[0], train[1].reshape(-1)
        start, drawing = jax.random.split(key)
        params = initial(start, setting.width)

        def step(carry: Any, number: jax.Array) -> Any:
            params, state = carry
            order = jax.random.permutation(
                jax.random.fold_in(drawing, number), len(data[0])
            )
            batch = jax.tree.map(lambda x: x[order[: setting.batch_size]], data)
            _, grads = value_and_grad(params, batch)
            updates, state = optimizer.update(grads, state, params)
            ratio = training.watched(state, "consensus_ratio")
            ratio = jnp.ones(()) if ratio is None else ratio
            return (optax.apply_updates(params, updates), state), ratio

        steps = jnp.arange(setting.num_steps)
        (params, _), ratios = jax.lax.scan(
            step, (params, optimizer.init(params)), steps
        )
        right = logits(params, test[0]).argmax(1) == test[1].reshape(-1)
        return right.mean(), ratios.mean()

    keys = jax.vmap(jax.random.key)(jnp.arange(setting.seeds))
    found, ratios = jax.jit(jax.vmap(trained))(keys, stack("train"), stack("test"))
    accuracies = [round(float(x), 4) for x in found]
    error = statistics.stdev(accuracies) / len(accuracies) ** 0.5
    return {
        "benchmark": "how_many_rows",
        "contestant": name,
        "num_rows": None if make is None else num_rows,
        "setting": setting._asdict(),
        "accuracy": accuracies,
        "mean": round(statistics.mean(accuracies), 4),
        "standard_error": round(error, 4),
        "consensus_ratio": round(float(ratios.mean()), 4),
    }


def table(rows: Sequence[Row]) -> str:
    """Markdown: accuracy by rule and number of rows."""
    counts = sorted({row["num_rows"] for row in rows} - {None}, reverse=True)
    lines = [
        "| test accuracy, % | " + " | ".join(f"{n} rows" for n in counts) + " |",
        "|---" * (1 + len(counts)) + "|",
    ]
    text = lambda row: f"{100 * row['mean']:.1f} ± {100 * row['standard_error']:.1f}"
    for name in RULES:
        own = {row["num_rows"]: row for row in rows if row["contestant"] == name}
        if None in own:
            cells = [text(own[None])] * len(counts)
            lines.append(f"| {name}, no rows | " + " | ".join(cells) + " |")
        elif own:
            cells = [text(own[n]) if n in own else "-" for n in counts]
            lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes ``how_many_rows.json`` and ``how_many_rows.md``."""
    options = _harness.parser(__doc__)
    options.add_argument("--seeds", type=int, default=Setting().seeds)
    args = _harness.parse(options, argv)
    setting = Setting(seeds=args.seeds)
    counts: Sequence[int] = ROWS
    if args.smoke:
        setting, counts = setting._replace(seeds=2, num_steps=3), (8, 4)
    rows = []
    for name, make in RULES.items():
        for num_rows in counts[:1] if make is None else counts:
            rows.append(run(name, num_rows, setting))
            _harness.show(rows[-1])
    _harness.write(
        "how_many_rows", rows, _harness.environment("scikit-learn"), args.out
    )
    text = table(rows)
    (args.out / "how_many_rows.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
