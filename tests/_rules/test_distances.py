"""What ties in float32 is decided by the rows' order, not by rounding."""

import jax.numpy as jnp
import pytest

from consensus_optax._rules.distances import first_of_least


@pytest.mark.parametrize(
    ("scores", "present", "first"),
    [
        ([3.0, 2.0, 1.0], [1, 1, 1], 2),
        ([3.0, 2.0 + 1e-6, 2.0 - 1e-6], [1, 1, 1], 1),
        ([3.0, 2.0 + 1e-4, 2.0 - 1e-4], [1, 1, 1], 2),
        ([0.0, 2.0, 1.0], [0, 1, 1], 2),
        ([0.0, 0.0, 1e-30], [0, 1, 1], 1),
        ([jnp.inf, jnp.inf, jnp.inf], [0, 1, 1], 1),  # each on its own
        ([jnp.inf, jnp.inf, 5.0], [0, 1, 1], 2),
    ],
)
def test_the_first_of_least_score_to_rounding(scores, present, first):
    there = jnp.asarray(present, bool)
    assert first_of_least(jnp.asarray(scores), there) == first
