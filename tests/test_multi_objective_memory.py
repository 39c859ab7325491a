"""How many arrays of B x B numbers a rule holds at once: compiled, not run."""

import jax
import jax.numpy as jnp
import pytest

import consensus_optax as co
from tests._compilation import AS_USERS_DO

pytestmark = pytest.mark.slow

B, P = 1024, 64
# As measured on a CPU, where LAPACK wants copies of its own, and half an array more.
ARRAYS = {
    "adasum": (co.adasum, 2.5),
    "pcgrad": (lambda: co.pcgrad(jax.random.key(0)), 3.1),
    "upgrad": (co.upgrad, 4.8),
    "mgda": (co.mgda, 5.0),
    "nash_mtl": (co.nash_mtl, 7.0),
    "cagrad": (co.cagrad, 7.0),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_few_arrays_of_b_by_b(name):
    make, arrays = ARRAYS[name]
    reducer, params = make(), jnp.zeros(P)
    update = lambda rows: reducer.update(rows, reducer.init(params), params)
    rows = jax.ShapeDtypeStruct((B, P), jnp.float32)
    compiled = jax.jit(update).lower(rows).compile(AS_USERS_DO)
    held = compiled.memory_analysis().temp_size_in_bytes
    assert 4 * B * B <= held <= arrays * 4 * B * B
