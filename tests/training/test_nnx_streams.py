"""NNX: random streams that a loss is given, beside those of the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from consensus_optax import training
from tests.training.test_nnx import assert_close

pytestmark = pytest.mark.standard_promotion  # Flax mixes integers and floats


class Called(nnx.Module):
    """Its dropout has no stream of its own, as in the tutorial of Flax."""

    def __init__(self):
        self.scale = nnx.Param(jnp.ones(8))
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, rngs):
        return self.dropout(x * self.scale[...][None], rngs=rngs).mean()


CALLS = {
    "positional": (lambda model, rngs, x: model(x, rngs), {"batch_argnums": 2}),
    "named": (lambda model, x, *, rngs: model(x, rngs), {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_streams_that_come_with_the_call(name):
    fun, options = CALLS[name]
    rngs, x = nnx.Rngs(3), jnp.ones((3, 8))

    positional = CALLS["positional"][0]

    def by_hand(i):
        own = nnx.Rngs(3)
        own.default.key[...] = jax.random.fold_in(own.default.key[...], i)
        return nnx.value_and_grad(positional)(Called(), own, x[i : i + 1])

    values, grads = zip(*map(by_hand, range(3)), strict=True)
    rows_of = training.nnx_value_and_rows(fun, **options)
    given = {"rngs": rngs} if name == "named" else {}
    got, rows = rows_of(Called(), *([] if given else [rngs]), x, **given)
    assert_close(got, jnp.stack(values))
    assert_close(rows, jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads))
    assert len(np.unique(rows["scale"][...], axis=0)) == 3
    assert int(rngs.default.count[...]) == 1
