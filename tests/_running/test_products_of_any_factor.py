"""Rows of any size, whichever of their two factors is large or small."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co

pytestmark = pytest.mark.slow

ROWS, M, N = 6, 4, 5
RULES = {
    "normalized": co.normalized_mean(),
    "by leaf": co.per_leaf(co.normalized_mean()),
    "transformed": co.chain(co.normalize_examples(), co.mean()),
    "gramian": co.cosine_filter(1.0),
    "affine": co.geometric_median(),
    "sorted": co.krum(1),
}
SCALE_FREE = ("normalized", "by leaf", "transformed")  # whose updates are of length 1
WAYS = {
    "held": {"hold_rows": True},
    "backward": {"hold_rows": False},
    "microbatches": {"microbatch_size": 2},
}
# The kernel as it is used: which of a row's factors is the left one depends on it.
USES = {
    "x @ w": lambda w, x, y: jnp.sum((x @ w) * y, -1),
    "x @ w.T": lambda w, x, y: jnp.sum((x @ w.T) * y, -1),
    "w @ x.T": lambda w, x, y: jnp.sum((w @ x.T).T * y, -1),
    "einsum": lambda w, x, y: jnp.einsum("bi,oi,bo->b", x, w, y),
}
SIZES = (1.0, 1e8, 1e25, 1e-13, 1e-30)
FAR = "one far row"


def step(rule, use, how):
    shape = (M, N) if use == "x @ w" else (N, M)
    loss = lambda w, batch: jnp.mean(USES[use](w, *batch))
    run = co.value_and_reduced_grad(loss, RULES[rule], **WAYS[how])
    w = jnp.zeros(shape)
    return jax.jit(lambda batch: run(w, batch, state=RULES[rule].init(w))[1:])


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("rule", RULES)
def test_a_rows_size_may_lie_in_either_factor(rule, use, how):
    """Its update is that of the same rows at a usual size, which one way gives."""
    rng = np.random.default_rng(0)
    # of rows that all point one way, so that none is taken out
    x, y = (jnp.asarray(rng.normal(1, 0.3, (ROWS, k)), jnp.float32) for k in (M, N))
    run, known = step(rule, use, how), step(rule, "x @ w", "held")
    turned = use != "x @ w"
    for size in (*SIZES, FAR):
        factor = jnp.ones((ROWS, 1)).at[2].set(1e25) if size == FAR else size
        wanted, _ = known((x, y if size != FAR else y * factor))
        for batch in ((x * factor, y), (x, y * factor)):
            got, seen = run(batch)
            unit = 1 if size == FAR or rule in SCALE_FREE else size
            got = np.asarray(got.T if turned else got, float) / unit
            # sums of 20 products and 6 rows in another order
            np.testing.assert_allclose(got, wanted, rtol=1e-5, err_msg=str(size))
            assert (int(seen.num_present), int(seen.num_nonfinite)) == (ROWS, 0)
