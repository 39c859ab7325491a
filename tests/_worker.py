"""Training as a user would write it, on one process or on several: plain JAX.

As a program, ``python -m tests._worker ADDRESS NUM ID FOLDER JOBS``: one process of
several; JOBS is a JSON list of the fields of :class:`Job`. Every process leaves what it
saw in FOLDER.
"""

import hashlib
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from benchmarks import _processes
from consensus_optax import tasks, training

GROUP = 16  # examples of a row
RULES = {
    "sign_consensus": co.sign_consensus,
    "cosine_filter": lambda: co.cosine_filter(0.9),
    "krum": lambda: co.krum(1, 3),
}


class Job(NamedTuple):
    """One training."""

    name: str
    task: str  # "digits" or "shakespeare"
    rule: str
    num_rows: int
    way: str = "worker_grad"  # in shard_map, a row a worker; or "jit": several
    steps: int = 50
    harm: bool = False  # a row of nan in every third step, an absent one in others
    folder: str | None = None  # of checkpoints, every tenth step; resumes from the last
    death: list[int] | None = None  # [process, step]: killed ahead of this step


class Trained(NamedTuple):
    """What one process saw."""

    first: int  # step that it began with
    params: np.ndarray  # (steps + 1, P)
    digests: np.ndarray  # of the parameters' bytes, after every step


def problem(task):
    """Parameters, loss of (params, batch), and the batch of some examples by number."""
    if task == "digits":
        parts = jax.tree.map(lambda x: x[0], tasks.digits().train)
        features = parts.inputs.reshape(len(parts.targets), -1)
        random = np.random.default_rng(0)
        shapes = {"w": (64, 24), "b": (24,), "v": (24, 10)}
        params = {
            name: (0.3 * random.normal(size=shape)).astype(np.float32)
            for name, shape in shapes.items()
        }

        def logits(params, inputs):
            return jnp.tanh(inputs @ params["w"] + params["b"][None]) @ params["v"]

        examples = lambda places: {
            "inputs": features[places],
            "targets": parts.targets[places],
        }
        return params, partial(_loss, logits), len(features), examples
    roles = tasks.shakespeare(min_characters=8000)
    text, length = roles.train.ids[0].astype(np.int32), 24
    model = training.CharacterTransformer(
        len(roles.vocabulary), length=length, features=16, rngs=nnx.Rngs(0)
    )
    logits, params = training.functional(model)

    def examples(places):
        windows = text[places[:, None] + np.arange(length + 1)[None]]
        return {"inputs": windows[:, :-1], "targets": windows[:, 1:]}

    count = int(roles.train.counts[0]) - length
    return nnx.to_pure_dict(params), partial(_loss, logits), count, examples


def _loss(logits, params, batch):
    wrong = optax.softmax_cross_entropy_with_integer_labels(
        logits(params, batch["inputs"]), batch["targets"]
    )
    return (batch["scale"] * wrong.reshape(len(wrong), -1).mean(1)).mean()


def batches(job, count, examples):
    """The batch and the rows' weights of a step, from its number alone."""

    def batch(step):
        random = np.random.default_rng(step)
        scale = np.ones((job.num_rows, GROUP), np.float32)
        weights = np.ones(job.num_rows, np.float32)
        if job.harm and step % 3 == 1:
            scale[step % job.num_rows] = np.nan
        if job.harm and step % 3 == 2:
            weights[step % job.num_rows] = 0
        picked = examples(random.integers(0, count, job.num_rows * GROUP))
        return picked | {"scale": scale.reshape(-1)}, weights

    return batch


def without_harm(batch, weights):
    """The batch as it would be if the bad rows had never been."""
    sound = (weights > 0) & np.isfinite(batch["scale"][::GROUP])
    kept = {name: array[np.repeat(sound, GROUP)] for name, array in batch.items()}
    return kept, weights[sound]


def step_of(job, loss, mesh):
    """The optimizer, and (params, state, batch, weights) to the next two of them."""
    in_memory = mesh is None
    inside = not in_memory and job.way == "worker_grad"
    rule = RULES[job.rule]()
    if not in_memory:
        rule = co.sharded(rule, "data", mesh=None if inside else mesh)
    tx = optax.chain(rule, optax.trace(0.9), optax.scale(-0.1))
    if inside:
        rows_of = co.worker_grad(loss, "data")
    else:
        rows_of = co.per_example_grad(loss, group_size=GROUP)

    def step(params, state, batch, weights):
        rows = rows_of(params, batch)
        updates, state = tx.update(rows, state, params, weights=weights)
        return optax.apply_updates(params, updates), state

    if inside:
        specs = (P(), P(), P("data"), P("data"))
        step = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P())
    return tx, jax.jit(step)


def train(job, mesh=None):
    """Trains on the mesh; without one, in memory and on sound rows alone."""
    params, loss, *data = problem(job.task)
    batch_of = batches(job, *data)
    tx, step = step_of(job, loss, mesh)
    run, first = (params, tx.init(params)), 0
    if mesh is None:
        split = without_harm
    else:
        run = jax.device_put(run, NamedSharding(mesh, P()))
        split = partial(own_part, NamedSharding(mesh, P("data")))
    checkpoints = ocp.CheckpointManager(job.folder) if job.folder else None
    if checkpoints and checkpoints.latest_step():
        first = checkpoints.latest_step()
        run = checkpoints.restore(first, args=ocp.args.StandardRestore(run))
    history, digests = [flat(run)], []
    for number in range(first, job.steps):
        if mesh is not None and [jax.process_index(), number] == job.death:
            os.kill(os.getpid(), signal.SIGKILL)
        run = step(*run, *split(*batch_of(number)))
        history.append(flat(run))
        digests.append(digest(run))
        if checkpoints and (number + 1) % 10 == 0:
            checkpoints.save(number + 1, args=ocp.args.StandardSave(run))
            checkpoints.wait_until_finished()
    if checkpoints:
        checkpoints.close()
    return Trained(first, np.stack(history), np.array(digests))


def own_part(sharding, *trees):
    """Global arrays, of which this process hands over its own part alone."""

    def put(array):
        size = len(array) // jax.process_count()
        own = array[jax.process_index() * size :][:size]
        return jax.make_array_from_process_local_data(sharding, own)

    return jax.tree.map(put, trees)


def flat(run):
    params, _ = run
    return np.concatenate(
        [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(params)]
    )


def digest(run):
    """Of the bytes of the parameters, which all devices of this process agree on."""
    found = set()
    for device in range(len(jax.tree.leaves(run)[0].addressable_shards)):
        hashed = hashlib.sha256()
        for leaf in jax.tree.leaves(run[0]):
            hashed.update(np.asarray(leaf.addressable_data(device)).tobytes())
        found.add(hashed.hexdigest())
    (agreed,) = found
    return agreed


def main(address, num_processes, process_id, folder, jobs):
    _processes.join(address, num_processes, process_id)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    for fields in json.loads(jobs):
        job = Job(**fields)
        trained = train(job, mesh)
        np.savez(Path(folder) / f"{job.name}-{process_id}.npz", **trained._asdict())


if __name__ == "__main__":
    main(*sys.argv[1:])
