"""The benchmark of a GPU, as far as it goes without one."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import gpu


@pytest.fixture(autouse=True)
def _as_users_do():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.slow
@pytest.mark.standard_promotion  # the decoder's own rotation
def test_every_step_of_the_decoder_gives_a_loss_and_an_update():
    job = gpu.job(gpu.DECODER, smoke=True)
    params, tokens = job.given["random"]
    shapes = jax.tree.map(lambda x: x.shape, params)
    with jax.set_mesh(job.mesh):
        for name, step in job.steps.items():
            loss, update = jax.eval_shape(step, params, tokens)
            assert loss.shape == (), name
            assert jax.tree.map(lambda x: x.shape, update) == shapes, name


def rows_of_two_steps():
    given = {"random": (jnp.ones(3), jnp.ones(3))}
    steps = {"plain": lambda x, y: x + y, "twice": lambda x, y: 2 * (x + y)}
    job = gpu.Job("mlp", 12, 1, steps, given)
    return list(gpu.timed(job, gpu.contestants(job, 2), repeats=2, seconds=0.1))


@pytest.mark.slow  # a profiler starts
def test_a_row_for_every_step_and_what_its_program_promises():
    plain, twice = rows_of_two_steps()
    assert (plain["ratio"], plain["graphs"]) == (1.0, False)
    assert twice["planned_kernels"] >= 1
    assert twice["output_bytes"] >= 12


def test_a_table_has_steps_with_graphs_and_without_and_what_the_device_did():
    common = {"workload": "mlp", "regime": "random", "planned_kernels": 7}
    common |= {"temp_above_plain_in_params": 0.5, "ms": 2.0, "kernels": 8}
    common |= {"device": "a GPU"}
    told = {("plain", False): (1.0, 1.0), ("plain", True): (1.0, 0.9)}
    told |= {("mean", False): (1.5, 1.1), ("mean", True): (1.25, 1.1)}
    rows = [
        {**common, "contestant": name, "graphs": graphs, "ratio": a, "busy_ms": b}
        for (name, graphs), (a, b) in told.items()
    ]
    assert gpu.table(rows, "mlp").splitlines()[2:] == [
        "| plain | 2 ms |  | 1.00 | 8, 7 | 0.50 |",
        "| mean | 1.50 | 1.25 | 1.10 | 8, 7 | 0.50 |",
    ]
    newer = {**rows[2], "ratio": 1.4}
    assert [row["ratio"] for row in gpu.merged(rows, [newer])] == [1.0, 1.0, 1.4, 1.25]
