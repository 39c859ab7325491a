"""The benchmark of what else rows are used for, at tiny sizes."""

import jax
import pytest

from benchmarks import _workloads, uses


@pytest.fixture(autouse=True)
def _as_users_do():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.slow
@pytest.mark.standard_promotion  # optax's own Adam
def test_every_step_but_norms_gives_an_update():
    work = _workloads.workload("mlp", smoke=True)
    found = dict(uses.steps(work))
    for name, step in found.items():
        out = jax.eval_shape(step, work.params, work.batch)
        if name == "norms alone":
            assert out.shape == (work.batch_size,)
        else:
            update = jax.tree.map(lambda x: x.shape, out[0])
            assert update == jax.tree.map(lambda x: x.shape, work.params), name
    kinds = "norms probe select private_sum moments cautious magma"
    assert all(any(kind in name for name in found) for kind in kinds.split())


def test_table_has_time_and_memory_of_every_model():
    row = {"contestant": "plain", "ratio": 1.0, "temp_above_plain_in_params": 0.0}
    rows = [{**row, "workload": name} for name in ("mlp", "cnn")]
    assert uses.table(rows).splitlines() == [
        "| times plain, memory above it | mlp | cnn |",
        "|---|---|---|",
        "| plain | 1.00, +0 P | 1.00, +0 P |",
    ]
