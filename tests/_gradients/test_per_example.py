"""The interface of per-example gradients; that the rows are exact: test_contraction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import consensus_optax as co

X = jnp.float32(np.random.default_rng(0).normal(size=(6, 3)))
Y = jnp.float32(np.random.default_rng(1).normal(size=(6,)))
W = jnp.array([1.0, -2.0, 0.5])


def loss(w, x, y=0.0):
    """The mean over a batch of squared errors."""
    assert x.ndim == 2
    return jnp.mean((x @ w - y) ** 2)


def one_by_one(group_size=1):
    """Gradients of the groups, one after the other."""
    groups = [slice(i, i + group_size) for i in range(0, 6, group_size)]
    return np.stack([jax.grad(loss)(W, X[at], Y[at]) for at in groups])


def assert_rows(got, wanted):
    # Sums of three numbers near 1, in another order.
    np.testing.assert_allclose(co.materialize(got), wanted, rtol=0, atol=3e-6)


@pytest.mark.parametrize("group_size", [1, 2, 3, 6])
def test_a_row_is_the_gradient_of_a_group(group_size):
    grad = co.per_example_grad(loss, batch_argnums=(1, 2), group_size=group_size)
    assert_rows(grad(W, X, Y), one_by_one(group_size))
    assert_rows(jax.jit(grad)(W, X, Y), one_by_one(group_size))


def test_group_size_changes_what_a_vote_decides():
    """Two of three groups are for a step that four of six examples are against."""
    x = jnp.array([3.0, -1, 3, -1, -1, -1])[:, None]
    slope = lambda w, x: jnp.mean(x @ w)
    votes = []
    for group_size in (1, 2):
        rows = co.per_example_grad(slope, group_size=group_size)(jnp.ones(1), x)
        rule = co.sign_consensus(0.6)
        update, _ = rule.update(rows, rule.init(jnp.ones(1)), jnp.ones(1))
        votes.append(float(update[0]))
    assert votes == [-1, 1]


def test_without_a_batch_axis():
    def of_one(w, x, y):
        assert (x.shape, y.shape) == ((3,), ())
        return (x @ w - y) ** 2

    grad = co.per_example_grad(of_one, batch_argnums=(1, 2), keep_batch_dim=False)
    assert_rows(grad(W, X, Y), one_by_one())


def test_values_and_auxiliary_results_have_a_leading_axis():
    def with_aux(w, x, y):
        return loss(w, x, y), {"prediction": x @ w, "count": jnp.float32(len(x))}

    options = {"batch_argnums": (1, 2), "has_aux": True, "group_size": 2}
    rows, aux = co.per_example_grad(with_aux, **options)(W, X, Y)
    (values, same), same_rows = co.per_example_value_and_grad(with_aux, **options)(
        W, X, Y
    )
    assert_rows(rows, one_by_one(2))
    assert_rows(same_rows, one_by_one(2))
    assert_rows(values, [loss(W, X[i : i + 2], Y[i : i + 2]) for i in (0, 2, 4)])
    assert_rows(aux["prediction"], X @ W)
    assert aux["count"].tolist() == [2, 2, 2]
    assert same["prediction"].shape == (6,)
    values, rows = co.per_example_value_and_grad(loss, batch_argnums=(1, 2))(W, X, Y)
    assert_rows(values, (X @ W - Y) ** 2)
    assert_rows(rows, one_by_one())


def test_several_arguments_and_keywords():
    """Trees of batches, shared arguments by position and by name, two gradients."""

    def scaled(batch, w, scale, *, power):
        return jnp.mean(jnp.abs(batch["x"] @ w - batch["y"]) ** power) * scale

    grad = co.per_example_grad(scaled, argnums=(1, 2), batch_argnums=0)
    of_w, of_scale = grad({"x": X, "y": Y}, W, jnp.float32(3), power=2.0)
    assert_rows(of_w, 3 * one_by_one())
    assert_rows(of_scale, (X @ W - Y) ** 2)


def noisy(w, x, key):
    """A loss with dropout: which inputs are read depends on the key."""
    keep = jax.random.bernoulli(key, 0.5, (3,)).astype(jnp.float32)
    return jnp.mean((x * keep[None]) @ w)


def masks(rows):
    """The gradient of `noisy` for x = 1 is the mask itself."""
    return np.asarray(co.materialize(rows)).astype(int)


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_every_row_has_its_own_key(make_key):
    ones, key = jnp.ones((32, 3)), make_key(0)
    shared = masks(co.per_example_grad(noisy)(W, ones, key))
    assert (shared == shared[0]).all()  # what a closed-over key would do
    own = masks(co.per_example_grad(noisy, prng_argnum=2)(W, ones, key))
    assert len(np.unique(own, axis=0)) > 4
    by_hand = [
        jax.random.bernoulli(jax.random.fold_in(key, i), 0.5, (3,)) for i in range(32)
    ]
    np.testing.assert_array_equal(own, np.asarray(by_hand).astype(int))


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_keys_of_all_rows_may_be_given(make_key):
    keys = jax.random.split(make_key(1), 6)
    own = masks(co.per_example_grad(noisy, prng_argnum=2)(W, jnp.ones((6, 3)), keys))
    by_hand = [jax.random.bernoulli(key, 0.5, (3,)) for key in keys]
    np.testing.assert_array_equal(own, np.asarray(by_hand).astype(int))
    groups = co.per_example_grad(noisy, prng_argnum=2, group_size=2)
    np.testing.assert_array_equal(masks(groups(W, jnp.ones((6, 3)), keys[:3])), own[:3])


@pytest.mark.parametrize(
    "check_vma", [True, pytest.param(False, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("microbatch_size", [None, 1])
@pytest.mark.parametrize("rule", [co.mean, co.sign_consensus, co.cosine_filter])
def test_inside_shard_map_rows_are_of_the_examples_there(
    check_vma, microbatch_size, rule
):
    """Parameters are the same everywhere, and jax would sum gradients by such."""
    mesh = jax.make_mesh((3,), ("data",), devices=jax.devices()[:3])
    rule = rule()

    def of_one(w, x, key):
        keyed = jax.random.fold_in(key, jax.lax.axis_index("data"))
        rows = co.per_example_grad(noisy, prng_argnum=2)(w, x, keyed)
        reduced = co.value_and_reduced_grad(loss, rule, microbatch_size=microbatch_size)
        _, update, _ = reduced(w, x, state=rule.init(w))
        return co.materialize(rows), update[None]

    run = jax.shard_map(
        of_one,
        mesh=mesh,
        in_specs=(P(), P("data"), P()),
        out_specs=P("data"),
        check_vma=check_vma,
    )
    x = jax.device_put(X, jax.NamedSharding(mesh, P("data")))
    rows, updates = map(np.asarray, jax.jit(run)(W, x, jax.random.key(0)))
    for device, part in enumerate(jnp.split(X, 3)):
        key = jax.random.fold_in(jax.random.key(0), device)
        wanted = co.per_example_grad(noisy, prng_argnum=2)(W, part, key)
        np.testing.assert_allclose(rows[2 * device :][:2], wanted, rtol=1e-6)
        update, _ = rule.update(co.per_example_grad(loss)(W, part), rule.init(W), W)
        np.testing.assert_allclose(updates[device], update, rtol=1e-5)


def test_leaves_without_entries_scalars_and_low_precision():
    params = {"w": W, "scale": jnp.float32(2), "none": jnp.ones((0, 3))}

    def of_tree(p, x):
        read = (x @ p["w"].astype(jnp.bfloat16).astype(jnp.float32)) * p["scale"]
        return jnp.mean(read) + p["none"].sum()

    rows = co.per_example_grad(of_tree)(params, X)
    shapes = jax.tree.map(lambda leaf: leaf.shape, co.materialize(rows))
    assert shapes == {"w": (6, 3), "scale": (6,), "none": (6, 0, 3)}
    reducer = co.sign_consensus()
    update, _ = reducer.update(rows, reducer.init(params), params)
    assert jax.tree.map(jnp.shape, update) == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        (
            {"batch_argnums": (1, 2)},
            (W, X, Y[:5]),
            "argument 1 has 6, argument 2 has 5",
        ),
        ({"group_size": 4}, (W, X), "`group_size` must divide .*; got 4 for 6"),
        ({}, (W, X[:0]), "`group_size` must divide .*; got 1 for 0"),
        ({"batch_argnums": (1, 2)}, (W, X, Y[0]), "argument 2 is a scalar"),
        ({"batch_argnums": 3}, (W, X), "got 3, but there are 2"),
        ({}, (W, {}), "there are no leaves"),
    ],
    ids=["lengths", "group_size", "no examples", "scalar", "argument", "no leaves"],
)
def test_batches_that_cannot_be_rows_are_errors(options, given, message):
    with pytest.raises(ValueError, match=message):
        co.per_example_grad(loss, **options)(*given)


def test_gradients_of_gradients_and_of_batches_of_parameters():
    """Rows can be differentiated, and mapped over an ensemble."""
    grad = co.per_example_grad(loss, batch_argnums=(1, 2), materialize=True)
    curvature = jax.jacfwd(lambda w: grad(w, X, Y))(W)
    np.testing.assert_allclose(  # products of three numbers near 1
        curvature, 2 * X[:, :, None] * X[:, None, :], rtol=0, atol=3e-6
    )
    ensemble = jax.vmap(grad, (0, None, None))(jnp.stack([W, 2 * W]), X, Y)
    assert_rows(ensemble[0], one_by_one())


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_factors_in_a_narrow_dtype_are_summed_in_float32(dtype):
    """As docs/limits.md says: without the rounding and the overflow of an array."""
    rng = np.random.default_rng(0)
    x, w = (
        jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((4, 3, 40), (40, 30))
    )

    def loss(w, batch):
        x, scale = batch
        y = x.astype(dtype) @ w.astype(dtype)
        return (scale[:, None, None] * y.astype(jnp.float32)).sum()

    by_hand = jax.vmap(jax.grad(loss), (None, 0))
    batch = x, jnp.ones(4)
    rows = co.per_example_grad(loss)(w, batch)
    assert isinstance(rows, co.OuterProduct)
    arrays = by_hand(w, jax.tree.map(lambda leaf: leaf[:, None], batch))
    exact = np.asarray(x.astype(dtype), np.float64).sum(1)[:, :, None] * np.ones(30)
    # three exact products added in float32; an array is rounded to the narrow dtype
    np.testing.assert_allclose(rows.materialize(), exact, rtol=1e-6, atol=1e-6)
    rounding = float(jnp.finfo(dtype).eps) / 2
    worst = np.max(abs(np.asarray(arrays) - exact) / abs(exact))
    assert rounding / 4 < worst <= rounding * (1 + 1e-6)
    batch = x, jnp.full(4, 6e4)
    rows = co.per_example_grad(loss)(w, batch).materialize()
    assert bool(jnp.isfinite(rows).all())
    arrays = by_hand(w, jax.tree.map(lambda leaf: leaf[:, None], batch))
    assert bool(jnp.isinf(arrays).any()) == (dtype == jnp.float16)
