"""How accurate is federated training if clients are unlike, or late?

    python -m benchmarks.unlike_and_late --questions heterogeneity

Unlike: pictures, shared out by Dirichlet's distribution from nearly one class for each
client to all alike, with and without what is to mend the clients' drift. Late: ten
updates make a new version while more and more clients train at a time, so that updates
are older and older; Dirichlet(0.3) pictures, and Shakespeare's roles. Rates are the
same for all, but for Adam's. Rows of earlier runs that are not made anew stay
(`_kept.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import consensus_optax as co
from benchmarks import _client_tasks, _harness, _kept
from benchmarks._client_tasks import LOCAL_RATES, TASKS, Make
from benchmarks._harness import Row
from consensus_optax import federated, training
from consensus_optax.comparison import ClientTask

MAX_AGE = 40
X_LABELS = {
    "heterogeneity": "concentration of Dirichlet's distribution",
    "staleness": "mean age of an update, versions",
}


class Setting(NamedTuple):
    """How large everything is; smoke runs make it tiny."""

    num_clients: int = 60  # of pictures
    num_sampled: int = 20
    num_steps: int = 10
    num_rounds: int = 60
    concentrations: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 10.0)
    num_updates: int = 10  # that make a version
    concurrencies: tuple[int, ...] = (10, 20, 35, 60)  # clients that train at a time
    num_versions: int = 80
    seeds: int = 3
    width: int = 64


SMOKE = Setting(num_clients=6, num_sampled=4, num_steps=1, num_rounds=2, seeds=2)
SMOKE = SMOKE._replace(concentrations=(0.3, 10.0), concurrencies=(2, 4), num_updates=2)
SMOKE = SMOKE._replace(num_versions=3, width=4)


class Way(NamedTuple):
    """How clients that are unlike are averaged."""

    server: Callable[[], Any] = lambda: optax.chain(co.mean(), optax.sgd(1.0))
    local: Callable[[float], Any] = optax.sgd
    control_variates: bool = False


def ways(num_sampled: int) -> dict[str, Way]:
    """By name; what knows how many lie is told of a fifth, of whom there are none."""
    then = lambda rule, rate=1.0: lambda: optax.chain(rule, optax.sgd(rate))
    mixing = co.nearest_neighbor_mixing(num_sampled // 5)
    return {
        "FedAvg": Way(),
        "FedProx, 1": Way(
            local=lambda rate: optax.chain(co.proximal(1.0), optax.sgd(rate))
        ),
        "SCAFFOLD": Way(control_variates=True),
        "FedAdam, 0.01": Way(
            lambda: optax.chain(co.mean(), optax.adam(0.01, eps=1e-3))
        ),
        "median": Way(then(co.median())),
        "NNM, geometric median": Way(then(co.after(mixing, co.geometric_median()))),
    }


def late_rules() -> dict[str, dict[str, Any]]:
    """What is buffered, with what an old update is worth."""
    root = federated.polynomial_staleness(0.5)
    return {
        "mean": {"rule": co.mean()},
        "mean, 1 / sqrt(1 + age)": {"rule": co.mean(), "staleness": root},
        "mean of rows / sqrt(1 + age)": {
            "rule": co.mean(),
            "staleness": root,
            "scales": "rows",
        },
        "median, 1 / sqrt(1 + age)": {"rule": co.median(), "staleness": root},
    }


def of_seeds(
    run: Callable[..., Any], work: ClientTask, seeds: int
) -> Callable[..., Any]:
    """One program of all seeds: what ``run`` gives of start, key and the rest."""
    start = jax.tree.map(lambda *x: jnp.stack(x), *map(work.params, range(seeds)))
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    jitted = jax.jit(jax.vmap(run, (0, 0, None, None, 0)))
    return lambda data, counts, more: jitted(start, keys, data, counts, more)


def heterogeneity(
    setting: Setting, made: Mapping[str, Make], done: _kept.Done
) -> Iterator[Row]:
    """Every way on every split; pictures alone can be shared out."""
    for task in [name for name in made if name != "shakespeare"]:
        of = functools.partial(
            made[task], num_clients=setting.num_clients, width=setting.width
        )
        splits = {each: of(concentration=each) for each in setting.concentrations}
        longest = max(work.data.shape[1] for work in splits.values())
        work = splits[setting.concentrations[0]]  # all have places in one table
        nothing = jnp.zeros(setting.seeds)
        for name, way in ways(setting.num_sampled).items():
            rounds = _rounds_of(work, way, LOCAL_RATES[task], setting)
            program = of_seeds(rounds, work, setting.seeds)
            facts = {"question": "heterogeneity", "task": task, "contestant": name}
            for concentration, own in splits.items():
                if done(**facts, x=concentration):
                    continue
                more = longest - own.data.shape[1]
                places = np.pad(own.data, [(0, 0), (0, more)])  # as many for everyone
                accuracy = program(places, jnp.asarray(own.counts), nothing)
                yield _row(facts, concentration, accuracy)


def _rounds_of(
    work: ClientTask, way: Way, rate: float, setting: Setting
) -> Callable[..., Any]:
    """All rounds of one way, from the start to the accuracy."""
    memory = training.client_memory(
        setting.num_clients, control_variates=way.control_variates
    )
    server, local = way.server(), way.local(rate)
    step = training.federated_round(work.loss, server, local, memory=memory)

    def run(params: Any, key: Any, data: Any, counts: Any, _: Any) -> Any:
        batch_at = training.client_batches(
            *(key, data, counts, work.draw),
            num_sampled=setting.num_sampled,
            num_steps=setting.num_steps,
            as_cohort=True,
        )
        fit = training.start(params, server, memory)
        fit, _ = training.train(step, fit, batch_at, setting.num_rounds)
        return work.scores(fit.params)["test_accuracy"]

    return run


def staleness(
    setting: Setting, made: Mapping[str, Make], done: _kept.Done
) -> Iterator[Row]:
    """Every rule at every concurrency."""
    for task, make in made.items():
        work = make(num_clients=setting.num_clients, width=setting.width)
        data, counts = jax.tree.map(jnp.asarray, (work.data, work.counts))
        keys = jax.vmap(jax.random.key)(100 + jnp.arange(setting.seeds))
        common = {"num_clients": len(counts), "num_updates": setting.num_updates}
        common["num_versions"] = setting.num_versions
        of = lambda many, c=common: functools.partial(
            federated.arrivals, concurrency=many, **c
        )
        orders = {c: jax.jit(jax.vmap(of(c)))(keys) for c in setting.concurrencies}
        for name, options in late_rules().items():
            versions = _versions_of(work, LOCAL_RATES[task], options, setting)
            program = of_seeds(versions, work, setting.seeds)
            facts = {"question": "staleness", "task": task, "contestant": name}
            for concurrency, order in orders.items():
                if not done(**facts, concurrency=concurrency):
                    accuracy, age = program(data, counts, order)
                    row = _row(facts, round(float(age.mean()), 2), accuracy)
                    yield {**row, "concurrency": concurrency}


def _versions_of(
    work: ClientTask, rate: float, options: dict[str, Any], setting: Setting
) -> Callable[..., Any]:
    """All versions with one rule, from the start to accuracy and mean age."""
    buffer = federated.buffered(num_updates=setting.num_updates, **options)
    server = optax.chain(buffer, co.skip_if_empty(optax.sgd(1.0)))
    step = training.late_round(work.loss, server, optax.sgd(rate), watch=("mean_age",))

    def run(params: Any, key: Any, data: Any, counts: Any, order: Any) -> Any:
        batch_at = training.late_batches(
            *(key, data, counts, work.draw, order), num_steps=setting.num_steps
        )
        fit = training.start_late(params, server, max_age=MAX_AGE)
        fit, metrics = training.train(step, fit, batch_at, setting.num_versions)
        accuracy = work.scores(fit.params)["test_accuracy"]
        return accuracy, metrics["mean_age"].mean()

    return run


QUESTIONS = {"heterogeneity": heterogeneity, "staleness": staleness}


def _row(facts: Row, x: float, accuracy: jax.Array) -> Row:
    shares = [round(float(each), 4) for each in accuracy]
    return {"benchmark": "unlike_and_late", **facts, "x": x, "accuracy": shares}


def place(row: Row) -> tuple[Any, ...]:
    """By question, task, contestant, and how unlike or late."""
    names = [*ways(20), *late_rules()]
    return (
        list(QUESTIONS).index(row["question"]),
        TASKS.index(row["task"]),
        names.index(row["contestant"]),
        row.get("concurrency") or row["x"],
    )


def panels(rows: Sequence[Row]) -> list[tuple[str, str, list[Row]]]:
    """Question and task, with their rows."""
    found = dict.fromkeys((row["question"], row["task"]) for row in rows)
    of = lambda pair: [r for r in rows if (r["question"], r["task"]) == pair]
    return [(*pair, of(pair)) for pair in found]


def table(rows: Sequence[Row]) -> str:
    """Markdown: for each question and task a line for every contestant."""
    parts = []
    for question, task, own in panels(rows):
        heads = [f"{x:g}" for x in dict.fromkeys(row["x"] for row in own)]
        lines = [f"{task}, accuracy in %, by {X_LABELS[question]}", ""]
        lines += [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
        for name in dict.fromkeys(row["contestant"] for row in own):
            of_name = [row for row in own if row["contestant"] == name]
            cells = [_kept.percent(row["accuracy"]) for row in of_name]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def plot(rows: Sequence[Row], path: Path) -> None:
    """A line of panels for each question; bands are from the least to the largest."""
    import matplotlib.pyplot as plt

    shown = panels(rows)
    lines = list(dict.fromkeys(question for question, _, _ in shown))
    columns = list(dict.fromkeys(task for _, task, _ in shown))
    figure, axes = plt.subplots(
        *(len(lines), len(columns)),
        figsize=(4.8 * len(columns), 3.9 * len(lines)),
        squeeze=False,
    )
    for unused in axes.flat:
        unused.set_visible(False)
    for question, task, own in shown:
        axis = axes[lines.index(question), columns.index(task)]
        axis.set_visible(True)
        for name in dict.fromkeys(row["contestant"] for row in own):
            of_name = [row for row in own if row["contestant"] == name]
            x = [row["x"] for row in of_name]
            y = 100 * np.array([row["accuracy"] for row in of_name])
            (line,) = axis.plot(x, y.mean(1), "o-", label=name, linewidth=1.3, ms=3)
            axis.fill_between(x, y.min(1), y.max(1), color=line.get_color(), alpha=0.12)
        if question == "heterogeneity":
            axis.set_xscale("log")
        axis.set_xlabel(X_LABELS[question])
        axis.set_title(f"{task}: accuracy, %", fontsize=10)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


KIND = _kept.Kind("unlike_and_late", place, table, plot)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes ``unlike_and_late.json``, ``.md`` and ``.png``."""
    options = _harness.parser(__doc__)
    options.add_argument("--questions", choices=tuple(QUESTIONS), nargs="+")
    _client_tasks.add_options(options)
    _kept.add_options(options)
    args = _harness.parse(options, argv)
    setting = SMOKE if args.smoke else Setting()

    def make(done: _kept.Done) -> Iterator[Row]:
        made = _client_tasks.asked_for(args)
        for question in args.questions or QUESTIONS:
            yield from QUESTIONS[question](setting, made, done)

    _kept.keep(KIND, args, make)


if __name__ == "__main__":
    main()
