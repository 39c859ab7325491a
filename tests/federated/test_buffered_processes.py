"""Real processes, one of which is slow: nobody waits, and nothing is lost.

What the server made is replayed here from its log of who came when: to the bit.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import _processes
from tests import _late_worker as worker


@pytest.mark.slow
def test_a_slow_process_comes_late_and_counts(tmp_path):
    ended = _processes.run("tests._late_worker", 4, [str(tmp_path)], timeout=120)
    _processes.checked(ended)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    log, slow = report["log"], 3
    # nobody waited for the slow one, K updates made each version
    assert report["version"] == len(log) // worker.NUM_UPDATES >= worker.NUM_VERSIONS
    often = [sum(client == who for client, *_ in log) for who in (1, 2, slow)]
    assert min(often[:2]) > often[2] >= 1
    ages = [now - started for client, _, started, now in log if client == slow]
    assert max(ages) >= 1

    optimizer = worker.server()
    params = jnp.zeros(worker.WIDTH)
    state, versions = optimizer.init(params), [params]
    update = jax.jit(optimizer.update)
    train = jax.jit(worker.local_update, static_argnums=1)
    for client, number, started, _ in log:
        row = train(versions[started], client, number)
        updates, state = update(row, state, params, versions=jnp.array([started]))
        params = optax.apply_updates(params, updates)
        if np.any(updates):
            versions.append(params)
    np.testing.assert_array_equal(np.asarray(params), np.float32(report["params"]))
