"""Keys of examples: one mask for each, in every way in which rows are computed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from tests.engines.test_sharded import mesh_of

B, WIDTH = 8, 5
KEY = jax.random.key(3)
MASKS = np.stack(
    [jax.random.bernoulli(jax.random.fold_in(KEY, i), 0.5, (WIDTH,)) for i in range(B)]
)
# Sums of powers of two tell which masks are in a sum: all is exact.
X = jnp.broadcast_to(2.0 ** jnp.arange(B, dtype=jnp.float32)[:, None], (B, WIDTH))
W = jnp.zeros(WIDTH)


def loss(w, batch):
    x, keys = batch
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (WIDTH,)))(keys)
    return jnp.mean(jnp.where(kept, x, 0) @ w)


def wanted(num_rows):
    """The rows by hand."""
    masked = np.where(MASKS, X, 0).reshape(num_rows, -1, WIDTH)
    return masked.mean(1)


HOW = [{}, {"group_size": 2}, {"num_rows": 2}, {"num_rows": 1}]


RAW = pytest.param(jax.random.PRNGKey, marks=pytest.mark.whole_zoo)


@pytest.mark.parametrize("make", [jax.random.key, RAW])
@pytest.mark.parametrize("how", HOW, ids=str)
def test_masks_are_the_examples_own(make, how):
    rows = co.per_example_grad(loss, **how)(W, (X, co.example_keys(make(3), X)))
    np.testing.assert_array_equal(co.materialize(rows), wanted(len(rows)))


@pytest.mark.whole_zoo
@pytest.mark.parametrize("microbatch_size", [1, 2, 3])
@pytest.mark.parametrize("how", HOW[:3], ids=str)
def test_in_microbatches(microbatch_size, how):
    rule = co.median()  # holds the rows as they come
    step = co.value_and_reduced_grad(loss, rule, microbatch_size=microbatch_size, **how)
    _, update, _ = step(W, (X, co.example_keys(KEY, X)), state=rule.init(W))
    rows = wanted(how.get("num_rows", B // how.get("group_size", 1)))
    np.testing.assert_array_equal(update, np.median(rows, 0))


ON_MESHES = [
    pytest.param(*case, marks=[pytest.mark.whole_zoo] * (case != (2, 1, 2)))
    for case in itertools.product([2, 4], [None, 1], [None, 1, 2])
]


@pytest.mark.parametrize(("devices", "microbatch_size", "num_rows"), ON_MESHES)
def test_on_meshes(devices, microbatch_size, num_rows):
    """Each device makes the keys of its own examples."""
    mesh, rule = mesh_of(devices), co.sharded(co.median(), "data")

    def of_device(w, x):
        batch = x, co.example_keys(KEY, x, "data")
        rows = co.worker_grad(loss, "data", num_rows=num_rows)(w, batch)
        step = co.value_and_reduced_grad(
            loss, rule, num_rows=num_rows, microbatch_size=microbatch_size
        )
        _, update, _ = step(w, batch, state=rule.init(w))
        return co.materialize(rows), update

    run = jax.shard_map(
        of_device, mesh=mesh, in_specs=(P(), P("data")), out_specs=(P("data"), P())
    )
    rows, update = jax.jit(run)(W, X)
    count = devices * (1 if num_rows is None else num_rows)
    np.testing.assert_array_equal(rows, wanted(count))
    whole = wanted(B if num_rows is None else count)
    np.testing.assert_array_equal(update, np.median(whole, 0))


@pytest.mark.whole_zoo
@pytest.mark.parametrize("kind", list(AxisType)[:2])
def test_under_jit_on_a_mesh(kind):
    mesh = mesh_of(2, kind=kind)
    with jax.set_mesh(mesh):
        x = jax.device_put(X, jax.NamedSharding(mesh, P("data")))
        w = jax.device_put(W, jax.NamedSharding(mesh, P()))
        run = jax.jit(
            lambda w, x: co.per_example_grad(loss, group_size=2)(
                w, (x, co.example_keys(KEY, x))
            )
        )
        np.testing.assert_array_equal(co.materialize(run(w, x)), wanted(4))


def test_a_key_of_the_row_is_that_of_its_only_example():
    by_row = lambda w, x, key: loss(w, (x, key[None]))
    rows = co.per_example_grad(by_row, prng_argnum=2)(W, X, KEY)
    np.testing.assert_array_equal(co.materialize(rows), wanted(B))
    np.testing.assert_array_equal(
        jax.random.key_data(co.example_keys(KEY, X)),
        jax.random.key_data(
            jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(B))
        ),
    )


@pytest.mark.parametrize(
    ("key", "batch", "says"),
    [
        (jax.random.split(KEY, 2), X, "`key` must be one random key"),
        (7, X, "`key` must be one random key, .* got 7"),
        (KEY, (X, X[:3]), "one number of examples"),
        (KEY, (), "there are no leaves"),
    ],
)
def test_no_keys(key, batch, says):
    with pytest.raises(ValueError, match=says):
        co.example_keys(key, batch)
