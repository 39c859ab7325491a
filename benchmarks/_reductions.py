"""One process of ``benchmarks.multihost``: reductions alone, timed in step with others.

    python -m benchmarks._reductions ADDRESS NUM_PROCESSES PROCESS_ID OPTIONS

OPTIONS are JSON; the first process prints the rows.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

import consensus_optax as co
from benchmarks import _harness, _processes
from benchmarks._harness import Contestant

RULES: dict[str, Callable[[], Any]] = {
    "mean": co.mean,
    "sign_consensus": co.sign_consensus,
    "median": co.median,
    "cosine_filter": co.cosine_filter,
    "krum": lambda: co.krum(0),  # needs three rows
}
AXIS = "data"


def shapes(num_params: int) -> dict[str, tuple[int, ...]]:
    """Three leaves of P numbers altogether, P a multiple of 400."""
    wide = num_params // 200
    return {"a": (wide, 100), "b": (wide // 2, 100), "c": (num_params // 4,)}


def bare(rows: dict[str, Any]) -> dict[str, Any]:
    """The two collectives that a rule needs and no rule: the least it can take."""
    num_devices = lax.axis_size(AXIS)

    def there_and_back(row: Any) -> Any:
        flat = row.reshape(-1)
        parts = jnp.pad(flat, (0, -flat.size % num_devices)).reshape(num_devices, -1)
        parts = lax.all_to_all(parts, AXIS, 0, 0)
        whole = lax.all_gather(parts[0], AXIS, tiled=True)
        return whole[: flat.size].reshape(row.shape[1:])

    return jax.tree.map(there_and_back, rows)


def contestants(num_params: int, mesh: Any) -> list[Contestant]:
    """Compiled, on rows of this process's own."""
    params = {name: jnp.zeros(shape) for name, shape in shapes(num_params).items()}
    by_row = PartitionSpec(AXIS)
    random = np.random.default_rng(jax.process_index())
    draw = lambda p: random.normal(size=(len(mesh.local_devices), *p.shape)) + 1
    rows = jax.make_array_from_process_local_data(
        NamedSharding(mesh, by_row),
        jax.tree.map(lambda p: draw(p).astype(np.float32), params),
    )

    def ours(make: Callable[[], Any]) -> Callable[[Any], Any]:
        rule = co.sharded(make(), AXIS)
        return lambda rows: rule.update(rows, rule.init(params), params)[0]

    pmean = lambda rows: lax.pmean(jax.tree.map(lambda row: row[0], rows), AXIS)
    steps = {"pmean": pmean, "all_to_all, all_gather": bare}
    steps |= {name: ours(make) for name, make in RULES.items()}
    if mesh.size < 3:
        del steps["krum"]
    out = []
    for name, step in steps.items():
        mapped = jax.shard_map(
            step, mesh=mesh, in_specs=by_row, out_specs=PartitionSpec(), check_vma=False
        )
        out.append(_harness.compiled(name, mapped, rows, baseline="pmean"))
    return out


def in_step(
    entries: Sequence[Contestant], repeats: int, calls: int
) -> dict[str, dict[int, float]]:
    """Seconds of a step by name and round, of contestants that take turns.

    Processes wait for each other within every step, so that all have to take the same
    steps in the same order: unlike ``_harness.interleave`` nothing looks at the clock.
    """
    times: dict[str, dict[int, float]] = {entry.name: {} for entry in entries}
    for turn in range(repeats):
        shift = turn % len(entries)
        for entry in [*entries[shift:], *entries[:shift]]:
            entry.run()  # has its caches back
            took = [_harness.elapsed(entry.run) for _ in range(calls)]
            times[entry.name][turn] = statistics.median(took)
    return times


def main(address: str, num_processes: str, process_id: str, options: str) -> None:
    _processes.join(address, num_processes, process_id)
    given = json.loads(options)
    mesh = jax.make_mesh((jax.device_count(),), (AXIS,))
    common = {"benchmark": "multihost", "num_processes": int(num_processes)}
    common["num_devices"] = mesh.size
    for num_params in given["sizes"]:
        entries = contestants(num_params, mesh)
        times = in_step(entries, given["repeats"], given["calls"])
        if jax.process_index() == 0:
            _harness.sum_up(entries, times, num_params=num_params, **common)


if __name__ == "__main__":
    main(*sys.argv[1:])
