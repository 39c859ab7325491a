"""Clients in chunks, over devices, from a checkpoint: the same, and no more memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from consensus_optax import compressors, training
from tests._selected import in_ci
from tests.training.test_clients import (
    CLIENTS,
    assert_bits,
    cohort,
    everything,
    kept,
    rounds,
)


@in_ci
def test_chunks_change_nothing():
    fit, step = everything()
    wanted = rounds(fit, step, [[0, 7, 3, 9, 4], [7, 2, 3, 1, 0]])
    _, in_chunks = everything(chunk_size=2)
    found = rounds(fit, in_chunks, [[0, 7, 3, 9, 4], [7, 2, 3, 1, 0]])
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
    jax.tree.map(close, (found.params, kept(found)), (wanted.params, kept(wanted)))


def memory_of(num_clients, num_sampled, chunk_size):
    """Temporary bytes of one round of a model with a wide layer inside."""
    wide = lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2)
    code = compressors.top_k(0.1)
    server = optax.chain(
        co.error_feedback(code, num_clients), co.mean(), optax.sgd(1.0)
    )
    memory = training.client_memory(num_clients, control_variates=True)
    step = training.federated_round(
        wide, server, optax.sgd(0.1), memory=memory, chunk_size=chunk_size
    )
    fit = jax.eval_shape(lambda: training.start(jnp.zeros((8, 4)), server, memory))
    batch = training.Cohort(
        jax.ShapeDtypeStruct((num_sampled,), jnp.int32),
        jax.ShapeDtypeStruct((num_sampled, 2, 1000, 8), jnp.float32),
    )
    weights = jax.ShapeDtypeStruct((num_sampled,), jnp.float32)
    compiled = jax.jit(step, donate_argnums=0).lower(fit, batch, weights).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@in_ci
def test_memory_grows_with_the_clients_of_a_round_alone():
    few = memory_of(100, 20, 5)
    assert memory_of(10_000, 20, 5) <= few + 4096
    activations = 1000 * 4 * 4
    assert memory_of(100, 20, None) > few + 10 * activations


@in_ci
def test_clients_over_eight_devices():
    """State along the mesh, batches along the mesh, under plain ``jit``."""
    mesh = jax.make_mesh((8,), ("clients",), axis_types=(AxisType.Auto,))
    by_client, whole = NamedSharding(mesh, P("clients")), NamedSharding(mesh, P())
    fit, step = everything(co.median)
    chosen = [3, 0, 9, 15, 1, 8, 12, 5]
    weights = jnp.ones(8).at[2].set(0.0)
    wanted, _ = step(fit, cohort(chosen), weights)
    lie = lambda leaf: by_client if leaf.shape[:1] == (CLIENTS,) else whole
    spread = jax.device_put(fit, jax.tree.map(lie, fit))
    batch = jax.device_put(cohort(chosen), by_client)
    found, _ = jax.jit(step, out_shardings=(jax.tree.map(lie, fit), None))(
        spread, batch, jax.device_put(weights, by_client)
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, (found.params, kept(found)), (wanted.params, kept(wanted)))
    absent = np.delete(np.arange(CLIENTS), [x for x in chosen if x != 9])
    of_absent = lambda fit: jax.tree.map(
        lambda leaf: np.asarray(leaf)[absent], kept(fit)
    )
    assert_bits(of_absent(found), of_absent(fit))
    assert found.clients.controls["body"].sharding.is_equivalent_to(by_client, 2)


@in_ci
def test_training_resumes_from_an_orbax_checkpoint_bit_for_bit(tmp_path):
    fit, step = everything()
    middle = rounds(fit, step, [[0, 7, 3], [7, 2, 3]])
    wanted = rounds(middle, step, [[1, 7, 0], [3, 2, 5]])
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "fit", middle)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "fit", fit)
    assert_bits(kept(restored), kept(middle))
    assert restored.params["head"] == optax.MaskedNode()
    again = rounds(restored, step, [[1, 7, 0], [3, 2, 5]])
    assert_bits(jax.tree.leaves(again), jax.tree.leaves(wanted))
