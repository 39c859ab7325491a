import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co


@pytest.mark.parametrize(("f", "clipped"), [(0, 0), (1, 1), (2, 3), (3, 4), (4, 4)])
def test_the_number_of_clipped_rows(f, clipped):
    """floor(2 f (n - f) / n) of nine rows of different norms."""
    norms = jnp.arange(1.0, 10.0)[::-1]
    lengths = factors(f, norms) * np.asarray(norms)
    np.testing.assert_allclose(lengths[clipped:], norms[clipped:])
    np.testing.assert_allclose(lengths[:clipped], 9 - clipped)


def factors(f, norms):
    rows = co.Roster(jnp.ones(len(norms)), jnp.zeros((), jnp.int32), {})
    return np.asarray(co.adaptive_clipping(f).factors(norms**2, rows))


def test_zero_rows_stay_zero():
    assert (factors(1, jnp.array([0.0, 0.0, 0.0])) == 1).all()
