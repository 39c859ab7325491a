"""Row transformations under ``jax_debug_nans``, eagerly: no nan is made on purpose."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co

B = 4
TRANSFORMATIONS = {
    "clip": co.clip_examples(1.0),
    "normalize": co.normalize_examples(),
    "scale": co.scale_examples(0.5),
    "on_rows": co.on_rows(optax.clip(1.0)),
    "momentum": co.row_momentum(0.9, num_rows=B),
}
NOW = [
    pytest.param(name, marks=() if name in ("clip", "momentum") else pytest.mark.slow)
    for name in TRANSFORMATIONS
]


@pytest.mark.standard_promotion  # of optax's own clip
@pytest.mark.parametrize("bad", [np.inf, pytest.param(np.nan, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NOW)
def test_broken_rows_are_counted_and_stop_no_debugger(name, bad):
    """The same as without, of arrays and of factors, in two steps."""
    a, d = jnp.ones((B, 1, 2)), jnp.ones((B, 1, 3))
    rows = {
        "array": jnp.ones((B, 3)).at[1, 0].set(bad),
        "product": co.OuterProduct(a, d.at[2, 0, 0].set(bad), (2, 3)),
        "count": jnp.ones(B, jnp.int32),
    }
    params = jax.tree.map(
        lambda x: jnp.zeros(x.shape[1:], x.dtype), rows, is_leaf=co.is_outer_product
    )
    chain = optax.chain(TRANSFORMATIONS[name], co.mean())

    def two_steps():
        state = chain.init(params)
        for _ in range(2):
            update, state = chain.update(rows, state, params)
        return update, state

    with jax.debug_nans(True):
        debugged = two_steps()
    assert int(debugged[1][1].num_nonfinite) == 2
    jax.tree.map(np.testing.assert_array_equal, debugged, two_steps())
