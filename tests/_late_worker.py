"""A server and its clients as processes of their own, who talk by files.

    python -m tests._late_worker ADDRESS NUM_PROCESSES PROCESS_ID FOLDER

Process 0 is the server, the others are clients, of whom the last is slow. Clients train
whatever parameters are the newest when they begin; the server feeds every update, as it
comes, to a `federated.buffered` rule. The address is not used: once all have compiled
nobody waits for anybody.
"""

import json
import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import consensus_optax as co
from consensus_optax import federated, training

NUM_UPDATES, NUM_VERSIONS, WIDTH = 2, 12, 3
QUICK, SLOW, TIMEOUT = 0.05, 0.5, 60.0  # seconds


def loss(w, target):
    return 0.5 * jnp.sum((w - target) ** 2)


def server():
    """Its optimizer: the mean of two, then SGD that stands still meanwhile."""
    staleness = federated.polynomial_staleness(0.5)
    buffer = federated.buffered(co.mean(), NUM_UPDATES, staleness=staleness)
    return optax.chain(buffer, co.skip_if_empty(optax.sgd(0.5)))


def local_update(params, client, number):
    """What a client's local training moves, its n-th time."""
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(client), number), (3,))
    batches = jnp.broadcast_to(client + 0.1 * noise, (1, 2, WIDTH))
    rows = training.local_updates(loss, optax.sgd(0.3))
    return rows(params, batches)[1]


def write(path, **arrays):
    """All of it or nothing, for whoever looks."""
    partial = path.with_suffix(".part")
    with partial.open("wb") as sink:
        np.savez(sink, **arrays)
    os.replace(partial, path)  # noqa: PTH105


def wait_for(there):
    begin = time.monotonic()
    while not there() and time.monotonic() - begin < TIMEOUT:
        time.sleep(0.01)


def unseen(folder, seen):
    """Updates that have come since, first come first."""
    paths = [path for path in folder.glob("update-*.npz") if path.name not in seen]
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns)


def serve(folder, num_clients):
    optimizer = server()
    params = jnp.zeros(WIDTH)
    state, version, log, seen = optimizer.init(params), 0, [], set()
    update = jax.jit(optimizer.update)
    wait_for(lambda: len(list(folder.glob("ready-*"))) == num_clients)
    write(folder / "params.npz", params=params, version=version)
    heard = lambda: {client for client, *_ in log} == set(range(1, num_clients + 1))
    done = lambda: version >= NUM_VERSIONS and heard()
    begin = time.monotonic()
    while not done() and time.monotonic() - begin < TIMEOUT:
        for path in unseen(folder, seen)[:1]:
            seen.add(path.name)
            with np.load(path) as found:
                row, started = jnp.asarray(found["row"]), int(found["version"])
            versions = jnp.array([started])
            updates, state = update(row, state, params, versions=versions)
            params = optax.apply_updates(params, updates)
            _, client, number = path.stem.split("-")
            log.append([int(client), int(number), started, version])
            newest = int(federated.buffer_of(state).version)
            if newest > version:
                version = newest
                write(folder / "params.npz", params=params, version=version)
        time.sleep(0.002)
    (folder / "stop").touch()
    report = {"log": log, "params": np.asarray(params).tolist(), "version": version}
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


def work(folder, client, pause):
    train = jax.jit(local_update, static_argnums=1)
    train(jnp.zeros(WIDTH), client, 0)  # compiles, ahead of the race
    (folder / f"ready-{client}").touch()
    wait_for((folder / "params.npz").exists)
    begin, number = time.monotonic(), 0
    while not (folder / "stop").exists() and time.monotonic() - begin < TIMEOUT:
        with np.load(folder / "params.npz") as newest:
            params, version = jnp.asarray(newest["params"]), int(newest["version"])
        row = train(params, client, number)
        time.sleep(pause)
        name = f"update-{client}-{number}.npz"
        write(folder / name, row=np.asarray(row), version=version)
        number += 1


def main():
    _, num_processes, process, folder = sys.argv[1:]
    own, last = int(process), int(num_processes) - 1
    if own == 0:
        serve(Path(folder), last)
    else:
        work(Path(folder), own, SLOW if own == last else QUICK)


if __name__ == "__main__":
    main()
