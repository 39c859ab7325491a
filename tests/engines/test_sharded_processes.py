"""Several processes with jax's own runtime: they agree, they end, they go on."""

import json
import time

import numpy as np
import pytest

from benchmarks.multihost import started

STEPS = 50
HEARTBEAT = 10  # seconds without a sign of life after which a process counts as dead


def options(folder, steps=STEPS, save_every=0):
    folder.mkdir(exist_ok=True)
    return (
        f"--out={folder}",
        f"--steps={steps}",
        f"--save-every={save_every}",
        f"--heartbeat={HEARTBEAT}",
    )


def train(folder, num_processes, **settings):
    with started("train", num_processes, *options(folder, **settings)) as workers:
        errors = [worker.communicate(timeout=120)[1] for worker in workers]
        assert not any(worker.returncode for worker in workers), "\n".join(errors)


def hashes(folder, process):
    lines = (folder / f"hashes-{process}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def checkpoints(folder):
    """Steps whose checkpoint is complete: others have longer names."""
    names = [path.name for path in folder.glob("checkpoints/*")]
    return [int(name) for name in names if name.isdigit()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same four devices in one process."""
    folder = tmp_path_factory.mktemp("alone")
    train(folder, 1)
    return folder


@pytest.mark.parametrize("num_processes", [2, 4])
def test_processes_agree_bit_for_bit_and_with_one(num_processes, alone, tmp_path):
    """50 steps on the digits, with an absent worker and with a poisoned one."""
    train(tmp_path, num_processes)
    first = hashes(tmp_path, 0)
    assert [step for step, _ in first] == list(range(STEPS))
    assert len({value for _, value in first}) == STEPS  # every step moved
    for process in range(1, num_processes):
        assert hashes(tmp_path, process) == first
    got, wanted = (np.load(path / "params.npz") for path in (tmp_path, alone))
    for name in wanted:
        scale = np.abs(wanted[name]).max()
        np.testing.assert_allclose(got[name], wanted[name], rtol=0, atol=1e-6 * scale)


def test_a_dead_process_ends_the_others_and_training_resumes(tmp_path):
    """Killed after a checkpoint; from there on every hash is that of a quiet run."""
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    endless = options(folder, steps=10**6, save_every=5)
    with started("train", 2, *endless) as (survivor, victim):
        begin = time.monotonic()
        while not checkpoints(folder):
            assert survivor.poll() is None
            assert victim.poll() is None
            assert time.monotonic() - begin < 120
            time.sleep(0.1)
        victim.kill()
        _, error = survivor.communicate(timeout=4 * HEARTBEAT)
    assert survivor.returncode != 0
    assert "Traceback" in error or "heartbeat" in error.lower(), error[-2000:]
    saved = max(checkpoints(folder))
    num_before = len(hashes(folder, 0))
    assert num_before >= saved
    until = saved + 7
    train(folder, 2, steps=until)
    train(whole, 2, steps=until)
    every, unbroken = hashes(folder, 0), dict(hashes(whole, 0))
    assert [step for step, _ in every[num_before:]] == list(range(saved, until))
    assert all(unbroken[step] == value for step, value in every if step < until)
