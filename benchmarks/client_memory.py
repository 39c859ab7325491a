"""What does a federated round cost whose clients keep something, in time and memory?

    python -m benchmarks.client_memory

One round on Shakespeare's roles: all clients at once, and some at a time; clients that
keep nothing, and control variates and errors of compression of all; on one device, and
with clients along the axis of eight.
"""

from __future__ import annotations

import os

if "device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import consensus_optax as co
from benchmarks import _harness, _rounds
from benchmarks._harness import Contestant, Row, compiled
from consensus_optax import compressors, tasks, training

CHUNKS = (None, 250, 50, 10)
LOCAL_RATE = 1.0


class Setting(NamedTuple):
    """How large everything is."""

    num_clients: int = 2000  # that something is kept of
    num_sampled: int = 1000
    num_steps: int = 5
    num_windows: int = 4
    width: int = 64


SMOKE = Setting(num_clients=64, num_sampled=16, num_steps=1, num_windows=1, width=4)


def contestants(roles: tasks.Roles, setting: Setting) -> list[Contestant]:
    """A round each; the first is what the others are compared with."""
    sizes = _rounds.Setting(
        num_clients=setting.num_sampled,
        num_steps=setting.num_steps,
        num_windows=setting.num_windows,
        width=setting.width,
        test_windows=1,
    )
    work = _rounds.problem(roles, sizes)
    texts, counts = (jnp.asarray(x) for x in roles.train)
    chosen = jnp.arange(setting.num_sampled, dtype=jnp.int32)

    @jax.jit
    def cohort_of(key: jax.Array) -> training.Cohort:
        keys = jax.random.split(key, (setting.num_sampled, setting.num_steps))
        role = chosen % len(roles.names)
        steps = jax.vmap(work.draw, (0, None, None))
        return training.Cohort(chosen, jax.vmap(steps)(keys, texts[role], counts[role]))

    cohort = cohort_of(jax.random.key(0))
    weights = counts[chosen % len(roles.names)].astype(jnp.float32)
    params = work.params(0)
    parts = functools.partial(_round, work.loss, params, setting.num_clients)
    made = []
    for keeps in (False, True):
        fit, step = parts(None, keeps)
        for chunk in CHUNKS:
            if chunk is None or chunk < setting.num_sampled:
                _, step = parts(chunk, keeps)
                name = f"{chunk or 'all'} at a time{', kept' if keeps else ''}"
                known = {"chunk_size": chunk, "keeps": keeps, "devices": 1}
                args = fit, cohort, weights
                made.append(compiled(name, step, *args, baseline=_FIRST, **known))
    mesh = jax.make_mesh((8,), ("clients",), axis_types=(AxisType.Auto,))
    fit, step = parts(None, True)
    lie = functools.partial(_placed, mesh, (setting.num_clients, setting.num_sampled))
    args = jax.tree.map(lie, (fit, cohort, weights))
    known = {"chunk_size": None, "keeps": True, "devices": 8}
    made.append(compiled("8 devices, kept", step, *args, baseline=_FIRST, **known))
    return made


_FIRST = "all at a time"


def _round(
    loss: Any, params: Any, num_clients: int, chunk_size: int | None, keeps: bool
) -> tuple[training.Fit, training.Step]:
    """Where training starts, and a round of it."""
    ahead, memory = optax.identity(), None
    if keeps:
        ahead = co.error_feedback(compressors.scaled_sign(), num_clients)
        memory = training.client_memory(num_clients, control_variates=True)
    server = optax.chain(ahead, co.mean(), optax.sgd(1.0))
    step = training.federated_round(
        loss, server, optax.sgd(LOCAL_RATE), memory=memory, chunk_size=chunk_size
    )
    return training.start(params, server, memory), step


def _placed(mesh: Any, along: tuple[int, ...], leaf: Any) -> Any:
    """What there is for every client along the mesh, the rest everywhere."""
    many = leaf.ndim > 0 and leaf.shape[0] in along
    spec = PartitionSpec("clients") if many else PartitionSpec()
    return jax.device_put(leaf, NamedSharding(mesh, spec))


def run(setting: Setting, repeats: int, seconds: float) -> list[Row]:
    """One row for every contestant."""
    made = contestants(tasks.shakespeare(), setting)
    common = {"benchmark": "client_memory", **setting._asdict()}
    return _harness.measure(made, repeats, seconds, **common)


def table(rows: Sequence[Row]) -> str:
    """Markdown: seconds, and megabytes besides parameters, state and batches."""
    lines = ["| a round | seconds | temporary MB |", "|---|---|---|"]
    for row in rows:
        temporary = (row["temp_bytes"] or 0) / 1e6
        lines.append(
            f"| {row['contestant']} | {row['ms'] / 1e3:.2f} | {temporary:.0f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes ``client_memory.json`` and ``client_memory.md``."""
    args = _harness.parse(_harness.parser(__doc__), argv)
    rows = run(SMOKE if args.smoke else Setting(), args.repeats, args.seconds)
    _harness.write("client_memory", rows, _harness.environment("flax"), args.out)
    (args.out / "client_memory.md").write_text(table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
