"""k-means on rows: pinned values, outliers, minorities, ties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from tests import _pinned, _reference_agreement
from tests._pinned import first_update

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("clusters", "least"), [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_equals_the_loop(clusters, least):
    reference = _reference_agreement.cluster_mean(clusters, least, 10)
    _pinned.check(co.cluster_mean(clusters, least), reference, rtol=3e-6)


def test_one_cluster_is_the_mean():
    update = first_update(co.cluster_mean(1, 1), _pinned.LARGE)
    np.testing.assert_allclose(update, _pinned.LARGE.mean(0), rtol=1e-5)


def test_outliers_are_rejected_and_a_minority_is_heard():
    random = np.random.default_rng(0)
    groups = [np.repeat([[9.0, 0.0]], 7, 0), np.repeat([[0.0, 9.0]], 2, 0)]
    rows = np.concatenate([*groups, [[-500.0, 3.0]], [[70.0, -900.0]]])
    rows += 0.01 * random.normal(size=rows.shape)
    rule, params = co.cluster_mean(4), jnp.zeros(2)
    rows = jnp.asarray(rows[random.permutation(11)], jnp.float32)
    update, state = jax.jit(rule.update)(rows, rule.init(params), params)
    np.testing.assert_allclose(update, [4.5, 4.5], atol=0.02)
    assert sorted(state.rule_state.sizes.tolist()) == [1, 1, 2, 7]
    assert int(state.rule_state.rejected) == 2


def test_how_far_an_outlier_lies_does_not_matter():
    with_outlier = lambda far: np.concatenate([_pinned.LARGE, np.full((1, 5), far)])
    near, far = (
        first_update(co.cluster_mean(4), with_outlier(far)) for far in (1e3, 1e12)
    )
    np.testing.assert_allclose(near, far, rtol=1e-5)
    assert 0 < np.abs(far).max() < 5


def test_fewer_distinct_rows_than_clusters():
    rows = np.array([[1.0], [1.0], [3.0], [3.0]])
    assert first_update(co.cluster_mean(4), rows) == [2.0]


def test_nothing_but_outliers_gives_nothing():
    assert not first_update(co.cluster_mean(3), np.diag([1.0, 5.0, 90.0])).any()


def test_rejects_zero_clusters():
    with pytest.raises(ValueError, match="`num_clusters` must be at least 1; got 0"):
        co.cluster_mean(0)
