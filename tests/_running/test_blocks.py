import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from consensus_optax._rules.kinds import Roster
from consensus_optax._running import blocks
from tests._stacks import B, factored

SMALL = [B * 30, B * 11, B * 6, B]


@pytest.fixture(params=[blocks.ENTRIES_ELSEWHERE, blocks.ENTRIES_ON_CPU, *SMALL])
def entries(request, monkeypatch):
    """Blocks as on any device, and such that hold a few coordinates, or one."""
    monkeypatch.setattr(blocks, "ENTRIES_ON_CPU", request.param)


@pytest.mark.usefixtures("entries")
@pytest.mark.parametrize("absent", [pytest.param(False, marks=pytest.mark.slow), True])
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


def test_a_model_of_several_blocks_on_a_cpu_is_one_block_elsewhere():
    """To the bit, since the median of three rows is one of their entries.

    Which of the two a program has is said where it is lowered for a platform.
    """
    random = np.random.default_rng(2)
    rows = jnp.asarray(random.normal(size=(3, 3 << 16)), jnp.float32)
    rule, params = co.median(), jnp.zeros(3 << 16)
    step = lambda rows: rule.update(rows, rule.init(params), params)[0]
    assert blocks.ENTRIES_ON_CPU < rows.size < blocks.ENTRIES_ELSEWHERE
    width = f"x{blocks.ENTRIES_ON_CPU // 3}xf32"
    for platform in ("cpu", "cuda", "tpu"):
        lowered = jax.jit(step).trace(rows).lower(lowering_platforms=(platform,))
        assert (width in lowered.as_text()) is (platform == "cpu")
    roster = Roster(jnp.ones(3), jnp.int32(0), {})
    reduce = rule.rule.reduce
    for entries in (blocks.ENTRIES_ON_CPU, blocks.ENTRIES_ELSEWHERE):
        (got,) = blocks._in_blocks(reduce, [rows], roster, entries)
        np.testing.assert_array_equal(got, np.median(np.asarray(rows), 0))


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
