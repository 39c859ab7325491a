"""One process of many: trains on the digits, or times the reduction alone.

Started by ``benchmarks.multihost``. On a cluster ``jax.distributed.initialize()`` needs
no arguments.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import consensus_optax as co

RULES = {
    "mean": co.mean,
    "sign_consensus": co.sign_consensus,
    "cosine_filter": lambda: co.cosine_filter(0.2),
    "median": co.median,
    "krum": lambda: co.krum(0),
}
EXAMPLES_PER_ROW = 16
ROWS, WHOLE = PartitionSpec("data"), PartitionSpec()


def mesh_of_all() -> Any:
    """One axis over the devices of all processes."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def spread(array: np.ndarray, mesh: Any) -> Any:
    """An array whose leading axis is sharded, of which a process makes its part."""
    sharding = NamedSharding(mesh, ROWS)
    return jax.make_array_from_callback(array.shape, sharding, lambda i: array[i])


def everywhere(tree: Any, mesh: Any) -> Any:
    """Arrays that all devices have."""
    sharding = NamedSharding(mesh, WHOLE)
    put = lambda x: jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])
    return jax.tree.map(lambda x: put(np.asarray(x)), tree)


def loss(params: Any, batch: Any) -> Any:
    """Cross-entropy of a small MLP; ``batch`` is (pictures, labels)."""
    pictures, labels = batch
    hidden = jnp.tanh(pictures @ params["w"] + params["b"][None])
    logits = hidden @ params["v"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def first_params() -> Any:
    """The same weights in every process."""
    random = np.random.default_rng(0)
    draw = lambda *shape: random.normal(0, shape[0] ** -0.5, shape).astype(np.float32)
    return {"w": draw(64, 32), "b": np.zeros(32, np.float32), "v": draw(32, 10)}


def make_step(rule: str, mesh: Any) -> tuple[Any, Any]:
    """The optimizer and one compiled step: three lines differ from one device."""
    optimizer = optax.chain(co.sharded(RULES[rule](), "data"), optax.adam(3e-3))

    def step(params: Any, state: Any, batch: Any, weights: Any) -> tuple[Any, Any]:
        rows = co.worker_grad(loss, "data")(params, batch)
        updates, state = optimizer.update(rows, state, params, weights=weights)
        return optax.apply_updates(params, updates), state

    specs = (WHOLE, WHOLE, ROWS, ROWS)
    mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=WHOLE)
    return optimizer, jax.jit(mapped)


def batch_of(step: int, num_rows: int, digits: Any) -> tuple[Any, np.ndarray]:
    """Data of a step; one worker is absent in some steps, one poisoned in others."""
    random = np.random.default_rng(step)
    taken = random.choice(len(digits[1]), num_rows * EXAMPLES_PER_ROW, replace=False)
    pictures, labels = (part[taken] for part in digits)
    weights = np.ones(num_rows, np.float32)
    if step % 5 == 1:
        weights[0] = 0
    if step % 5 == 2:
        pictures = pictures.copy()
        pictures[-1] = np.nan  # in the data of the last worker
    return (pictures, labels), weights


def digest(tree: Any) -> str:
    """Hash of what this process has on each of its devices, which must be one."""
    hashes = set()
    for device in range(jax.local_device_count()):
        hashed = hashlib.sha256()
        for leaf in jax.tree.leaves(tree):
            hashed.update(np.asarray(leaf.addressable_data(device)).tobytes())
        hashes.add(hashed.hexdigest())
    assert len(hashes) == 1, "devices of one process disagree"
    return hashes.pop()


def train(args: Any) -> None:
    """Trains from the last checkpoint, if there is one; one line of hash a step."""
    import orbax.checkpoint
    from sklearn.datasets import load_digits

    pictures, labels = load_digits(return_X_y=True)
    digits = (pictures.astype(np.float32) / 16, labels.astype(np.int32))
    mesh = mesh_of_all()
    optimizer, step = make_step(args.rule, mesh)
    params = first_params()
    now = everywhere({"params": params, "state": optimizer.init(params)}, mesh)
    manager = orbax.checkpoint.CheckpointManager(args.out / "checkpoints")
    start = 0
    if manager.latest_step() is not None:
        start = manager.latest_step()
        saved = orbax.checkpoint.args.StandardRestore(now)
        now = manager.restore(start, args=saved)
    log = args.out / f"hashes-{args.process}.jsonl"
    with log.open("a", encoding="utf-8") as lines:
        for index in range(start, args.steps):
            data, weights = batch_of(index, mesh.size, digits)
            batch = tuple(spread(part, mesh) for part in data)
            given = (now["params"], now["state"], batch, spread(weights, mesh))
            now = dict(zip(("params", "state"), step(*given), strict=True))
            print(json.dumps([index, digest(now["params"])]), file=lines, flush=True)
            if args.save_every and (index + 1) % args.save_every == 0:
                saved = orbax.checkpoint.args.StandardSave(now)
                manager.save(index + 1, args=saved)
                manager.wait_until_finished()
    if args.process == 0:
        leaves = {
            k: np.asarray(v.addressable_data(0)) for k, v in now["params"].items()
        }
        np.savez(args.out / "params.npz", **leaves)


def measure(args: Any) -> None:
    """Milliseconds of one reduction of ``size`` numbers from every device."""
    mesh, size = mesh_of_all(), args.size
    params = jnp.zeros(size)
    draw = lambda i: np.random.default_rng(i[0].start).normal(size=(1, size))
    sharding = NamedSharding(mesh, ROWS)
    rows = jax.make_array_from_callback(
        (mesh.size, size), sharding, lambda i: draw(i).astype(np.float32)
    )

    def ours(name: str) -> Any:
        reducer = RULES[name]()
        across = co.sharded(reducer, "data")
        return lambda row: across.update(row, reducer.init(params), params)[0]

    runs = {"pmean": lambda row: lax.pmean(row[0], "data")}
    runs |= {name: ours(name) for name in RULES}
    compiled = {
        name: jax.jit(jax.shard_map(run, mesh=mesh, in_specs=ROWS, out_specs=WHOLE))
        for name, run in runs.items()
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(args.repeats + 1):  # interleaved; the first turn compiles
        for name, run in compiled.items():
            begin = time.perf_counter()
            jax.block_until_ready(run(rows))
            if turn:
                times[name].append(time.perf_counter() - begin)
    if args.process == 0:
        plain = float(np.median(times["pmean"]))
        for name, values in times.items():
            middle = float(np.median(values))
            row = {"contestant": name, "ms": 1e3 * middle, "ratio": middle / plain}
            print(json.dumps(row), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Joins the others, then works."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("what", choices=("train", "time"))
    options.add_argument("--process", type=int, default=0)
    options.add_argument("--processes", type=int, default=1)
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--heartbeat", type=int, default=100, help="seconds")
    options.add_argument("--rule", choices=RULES, default="cosine_filter")
    options.add_argument("--steps", type=int, default=50)
    options.add_argument("--save-every", type=int, default=0)
    options.add_argument("--size", type=int, default=2**20)
    options.add_argument("--repeats", type=int, default=20)
    options.add_argument("--out", type=Path, default=Path())
    args = options.parse_args(argv)
    if args.processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            f"localhost:{args.port}",
            args.processes,
            args.process,
            initialization_timeout=60,
            heartbeat_timeout_seconds=args.heartbeat,
            shutdown_timeout_seconds=args.heartbeat,
        )
    {"train": train, "time": measure}[args.what](args)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
