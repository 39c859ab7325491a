"""What a pass over microbatches looks at, and what it does not."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from consensus_optax.engines.microbatches.pairs import gramians

COUNT, SIZE, WIDTH = 4, 3, 5


def test_pairs_of_microbatches_are_looked_at_once():
    """Those up to its own: (k + 3) / 2 passes over k of them, and later ones are 0."""
    random = np.random.default_rng(0)
    rows = jnp.asarray(random.normal(size=(COUNT, SIZE, WIDTH)), jnp.float32)
    micro = SimpleNamespace(
        indices=jnp.zeros((COUNT, SIZE), int),
        arranged=SimpleNamespace(varying=lambda tree: tree),
        block=lambda other: other,
    )
    read = lambda block: [rows[block]]
    of_one = lambda index: gramians(micro, index, read(index), read, jnp.float32)[0]
    found = jax.jit(jax.vmap(of_one))(jnp.arange(COUNT))
    exact = np.asarray(rows, float)
    wanted = np.einsum("imp,jnp->ijmn", exact, exact)
    earlier = np.tril(np.ones((COUNT, COUNT)))[..., None, None]
    np.testing.assert_allclose(found, wanted * earlier, rtol=0, atol=1e-6 * WIDTH)
