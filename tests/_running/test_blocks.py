import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from consensus_optax._running import blocks
from tests._stacks import B, factored


@pytest.fixture(params=[1 << 19, B * 30, B * 11, B * 6, B])
def entries(request, monkeypatch):
    """Blocks that hold everything, or a few coordinates, or one."""
    monkeypatch.setattr(blocks, "_block_entries", lambda: request.param)


@pytest.mark.usefixtures("entries")
@pytest.mark.parametrize("absent", [False, True])
def test_the_size_of_a_block_changes_nothing(absent):
    rows, parameters, stood_for = factored()
    dense = dict(zip(sorted(rows), stood_for, strict=True))
    random = np.random.default_rng(1)
    more = {
        "scalar": random.normal(size=B),
        "nothing": random.normal(size=(B, 0)),
        "matrix": random.normal(size=(B, 4, 13)),
    }
    single = {name: leaf.astype(np.float32) for name, leaf in more.items()}
    rows |= {name: jnp.asarray(leaf) for name, leaf in single.items()}
    parameters |= {name: jnp.ones(leaf.shape[1:]) for name, leaf in more.items()}
    dense |= {name: leaf.reshape(B, -1) for name, leaf in single.items()}
    weights = np.ones(B)
    weights[2] = 1 - absent
    rule = co.median()
    update = jax.jit(rule.update)(
        rows, rule.init(parameters), parameters, weights=jnp.asarray(weights, "f4")
    )[0]
    for name, leaf in update.items():
        wanted = np.median(dense[name][weights > 0], 0)
        np.testing.assert_allclose(leaf.ravel(), wanted, rtol=1e-6, atol=1e-6)


def test_no_copy_of_the_stack_is_made():
    rule, params = co.median(), jnp.zeros((512, 1024))
    rows = jax.ShapeDtypeStruct((16, *params.shape), jnp.float32)
    compiled = jax.jit(rule.update).lower(rows, rule.init(params), params).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 0.5 * memory.argument_size_in_bytes


def test_outer_products_are_never_multiplied_out_whole():
    rule, params = co.trimmed_mean(1), jnp.zeros((1024, 1024))
    factor = jax.ShapeDtypeStruct((16, 1, 1024), jnp.float32)
    rows = co.OuterProduct(factor, factor, (1024, 1024))
    compiled = jax.jit(rule.update).lower(rows, rule.init(params), params).compile()
    stack = 16 * params.size * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 0.5 * stack
