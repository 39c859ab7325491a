"""A rule among the selected rows is that rule on those rows alone."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from tests._stacks import first_update

ROWS = jnp.float32(np.random.default_rng(4).normal(0.7, 1, (6, 12)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    [co.sign_consensus(0.7), co.mean(), co.cosine_filter(0.5), co.subspace_weighting()],
    ids=["fold", "mean", "filter", "subspace_weighting"],
)
def test_equals_the_rule_on_the_survivors(rule):
    # Row 3 is opposite to the first; the filter keeps who is closer than 1.2.
    rows = ROWS.at[3].set(-ROWS[0])
    weights = jnp.array([1.0, 2.0, 1.0, 5.0, 0.5, 1.0])
    selector = co.cosine_filter(1.2)
    _, seen = first_update(selector, rows)
    assert seen.rule_state.accepted == 4
    result, state = first_update(co.among(selector, rule), rows, weights=weights)
    kept = jnp.array([0, 1, 2, 4, 5])
    alone, alone_state = first_update(rule, rows[kept], weights=weights[kept])
    size = float(jnp.abs(alone).max())
    np.testing.assert_allclose(result, alone, rtol=0, atol=1e-6 * size)
    assert state.rule_state.selector_state.accepted == 4
    assert state.consensus_ready == alone_state.consensus_ready
    assert state.num_present == 6


def test_nobody_selected_is_nothing():
    rows = jnp.stack([ROWS[0], -ROWS[0]])
    result, state = first_update(co.among(co.cosine_filter(), co.mean()), rows)
    assert not result.any()
    assert not state.consensus_ready


@pytest.mark.parametrize(
    ("selector", "rule", "message"),
    [
        (co.sign_consensus(), co.mean(), "`selector` must be a weighting .* Fold"),
        (co.per_leaf(co.cosine_filter()), co.mean(), "per_leaf=True"),
        (optax.chain(co.mean()), co.mean(), "`selector` must be a reducer"),
        (co.cosine_filter(), optax.adam(0.1), "`rule` must be a reducer"),
    ],
    ids=["fold", "by leaf", "chain", "optimizer"],
)
def test_arguments_of_another_kind_are_errors(selector, rule, message):
    with pytest.raises(ValueError, match=message):
        co.among(selector, rule)
