"""The Gramian of a tree of rows."""

import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax import OuterProduct, diagnostics


def test_sums_over_all_kinds_of_leaves():
    random = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    lazy = OuterProduct(normal(4, 2, 3), normal(4, 2, 5), row_shape=(3, 5))
    rows = {
        "lazy": lazy,
        "low": normal(4, 6).astype(jnp.bfloat16),
        "scalar": normal(4),
        "count": jnp.ones((4,), jnp.int32),
    }
    parts = (lazy.materialize(), rows["low"], rows["scalar"])
    wide = [np.asarray(x.astype(jnp.float32), np.float64) for x in parts]
    wanted = sum(x.reshape(4, -1) @ x.reshape(4, -1).T for x in wide)
    got = diagnostics.gramian(rows)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_needs_a_leaf():
    with pytest.raises(ValueError, match="`rows` must have a floating leaf"):
        diagnostics.gramian({"count": jnp.ones((4,), jnp.int32)})


OF_GRAMIANS = {
    "coherence": diagnostics.coherence,
    "gradient_diversity": diagnostics.gradient_diversity,
    "noise_scale": diagnostics.noise_scale,
    "conflicting_share": diagnostics.conflicting_share,
    "cosine_quantiles": diagnostics.cosine_quantiles,
    "share_within": lambda gramian, **given: diagnostics.share_within(
        gramian, (0.5,), **given
    ),
}
ROWS = {"w": jnp.ones((4, 3, 2)), "b": jnp.ones((4, 2))}
NO_GRAMIAN = {
    "rows": (ROWS, "dict"),
    "a list of rows": ([ROWS["w"]], "list"),
    "rows of one leaf": (ROWS["b"], r"shape \(4, 2\)"),
    "norms": (jnp.ones(4), r"shape \(4,\)"),
    "factored rows": (
        OuterProduct(jnp.ones((4, 1, 4)), jnp.ones((4, 1, 4)), row_shape=(4, 4)),
        "OuterProduct",
    ),
    "a nested list": ([[1.0, 0.0], [0.0, 1.0]], "list"),
    "nothing": (None, "NoneType"),
}


@pytest.mark.parametrize("name", OF_GRAMIANS)
@pytest.mark.parametrize("given", NO_GRAMIAN)
def test_what_is_no_gramian(name, given):
    value, found = NO_GRAMIAN[given]
    with pytest.raises(ValueError, match=rf"`gramian` must be an array .* {found}\."):
        OF_GRAMIANS[name](value)


@pytest.mark.parametrize("name", OF_GRAMIANS)
def test_weights_of_another_kind(name):
    with pytest.raises(ValueError, match="`weights` must be numbers, one for every"):
        OF_GRAMIANS[name](jnp.eye(4), weights=ROWS)


@pytest.mark.parametrize("name", OF_GRAMIANS)
def test_counts_are_numbers(name):
    whole = np.array([[2, 1], [1, 2]])
    wanted = OF_GRAMIANS[name](jnp.asarray(whole, jnp.float32))
    np.testing.assert_array_equal(OF_GRAMIANS[name](whole), wanted)
    with pytest.raises(ValueError, match="`gramian` must be an array of real"):
        OF_GRAMIANS[name](np.eye(2, dtype=np.complex64))


OF_ROWS = [
    diagnostics.gramian,
    diagnostics.row_norms,
    diagnostics.leaf_agreement,
    diagnostics.gradient_variance,
]
NO_ROWS = {
    "a scalar": (jnp.ones(()), r"leads with the axis of rows.*is a scalar"),
    "numbers": ([1.0, 2.0], r"leads with the axis of rows.*`\[0\]` is a scalar"),
    "functions": ({"f": len}, r"`\['f'\]` is a builtin_function"),
    "unequal": ([jnp.ones((3, 2)), jnp.ones(4)], r"one number .* has 4, another 3"),
}


@pytest.mark.parametrize("of_rows", OF_ROWS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("given", NO_ROWS)
def test_what_is_no_stack_of_rows(of_rows, given):
    rows, message = NO_ROWS[given]
    with pytest.raises(ValueError, match=message):
        of_rows(rows)


@pytest.mark.parametrize("of_rows", OF_ROWS, ids=lambda f: f.__name__)
def test_rows_of_numpy(of_rows):
    rows = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    np.testing.assert_array_equal(of_rows(rows), of_rows(jnp.asarray(rows)))


def test_trees_without_gradients():
    for of_leaf in (diagnostics.leaf_agreement, diagnostics.gradient_variance):
        assert of_leaf({}) == {}
        assert not np.any(of_leaf(jnp.ones((3, 2), jnp.int32)))
