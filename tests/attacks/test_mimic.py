"""Whom mimics copy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax import attacks
from tests._pinned import LARGE


def test_the_row_that_stands_out():
    centered = LARGE - LARGE.mean(0)
    _, _, directions = np.linalg.svd(centered)
    index = np.abs(centered @ directions[0]).argmax()
    rows = {"a": jnp.asarray(LARGE[:, :2]), "b": jnp.asarray(LARGE[:, 2:])}
    copies = jax.jit(lambda rows: attacks.mimic(rows, 3, index=None))(rows)
    for name, leaf in copies.items():
        np.testing.assert_array_equal(leaf, np.tile(rows[name][index], (3, 1)))


def test_an_index_that_is_no_row():
    with pytest.raises(ValueError, match=r"`index` must be less than .* 10; got 10"):
        attacks.mimic(jnp.asarray(LARGE), 1, index=10)
