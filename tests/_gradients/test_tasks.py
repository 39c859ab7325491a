"""The interface of rows of several losses; that they are exact: test_pullbacks."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from tests._models import assert_close

pytestmark = pytest.mark.slow

X = jnp.float32(np.random.default_rng(0).normal(size=(6, 3)))
Y = jnp.float32(np.random.default_rng(1).normal(size=(6,)))
W = jnp.array([1.0, -2.0, 0.5])


def losses(w, x, y=0.0):
    """Three means over the batch, whose keys are not in order."""
    assert x.ndim == 2
    error = x @ w - y
    return {
        "square": jnp.mean(error**2),
        "cubic": jnp.mean(error**3),
        "output": jnp.mean(x @ w),
    }


ORDER = ("cubic", "output", "square")  # as JAX has a dict


def by_hand(w, *data):
    rows = [jax.grad(lambda w, name=name: losses(w, *data)[name])(w) for name in ORDER]
    return np.stack(rows)


def assert_rows(got, wanted):
    # Sums of six numbers near 1, in another order.
    np.testing.assert_allclose(co.materialize(got), wanted, rtol=0, atol=5e-6)


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_row_for_each_loss_in_the_order_of_the_keys(jit):
    values, rows = jit(co.task_value_and_grad(losses))(W, X, Y)
    assert_rows(rows, by_hand(W, X, Y))
    wanted = losses(W, X, Y)
    assert sorted(values) == list(ORDER)
    for name, value in wanted.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-6)
    again = co.task_grad(lambda w, x, y: dict(sorted(losses(w, x, y).items())))(W, X, Y)
    assert_rows(again, by_hand(W, X, Y))
    weights = {"square": 1.0, "cubic": 0.0, "output": 3.0}
    rule = co.mean()
    preferred = jnp.stack(list(map(jnp.float32, jax.tree.leaves(weights))))
    update, _ = rule.update(rows, rule.init(W), W, weights=preferred)
    assert_rows(update, by_hand(W, X, Y).T @ np.array([0, 0.75, 0.25]))


def test_other_mappings_and_vectors():
    nested = lambda w, x: collections.OrderedDict(
        z={"b": jnp.mean(x @ w), "a": w.sum()}, y=(w * w).sum()
    )
    values, rows = co.task_value_and_grad(nested)(W, X)
    assert isinstance(values, collections.OrderedDict)
    assert_rows(rows, [np.ones(3), X.mean(0), 2 * W])
    rows = co.task_grad(lambda w, x: (x @ w) ** 2)(W, X)
    assert_rows(rows, 2 * (X @ W)[:, None] * X)


@pytest.mark.parametrize("kind", [dict, jnp.stack])
def test_one_loss(kind):
    one = lambda w, x: {"a": jnp.mean(x @ w)} if kind is dict else (x @ w).mean()[None]
    values, rows = co.task_value_and_grad(one)(W, X)
    assert jax.tree.map(jnp.shape, values) == ({"a": ()} if kind is dict else (1,))
    assert_rows(rows, X.mean(0)[None])
    rule = co.upgrad()
    update, _ = rule.update(rows, rule.init(W), W)
    assert_rows(update, X.mean(0))


def test_several_arguments_keywords_flags_and_aux():
    def fun(kind, x, w, scale, *, power):
        assert kind == "kind"
        error = (x @ w) ** power * scale
        return jnp.stack([error.mean(), scale * 2.0, w.sum()]), {"error": error}

    grad = co.task_grad(fun, argnums=(3, -2), has_aux=True)
    (of_scale, of_w), aux = grad("kind", X, W, 3.0, power=2)
    jacobian = jax.jacrev(lambda w, s: fun("kind", X, w, s, power=2)[0], (1, 0))
    wanted = jacobian(W, 3.0)
    assert_rows(of_scale, wanted[0])
    assert_rows(of_w, wanted[1])
    assert aux["error"].shape == (6,)
    (values, same), rows = co.task_value_and_grad(fun, 2, has_aux=True)(
        "kind", X, W, 3.0, power=2
    )
    assert values.shape == (3,)
    assert_rows(same["error"], aux["error"])
    assert_rows(rows, of_w)
    no_batch = co.task_grad(lambda w: {"a": w.sum(), "b": w @ w})(W)
    assert_rows(no_batch, [np.ones(3), 2 * W])


def test_what_no_loss_depends_on_has_zero_rows():
    params = {"w": W, "unused": jnp.ones((2, 2)), "empty": jnp.ones((0, 3))}
    rows = co.task_grad(lambda p, x: losses(p["w"], x) | {"constant": jnp.float32(2)})(
        params, X
    )
    shapes = jax.tree.map(jnp.shape, co.materialize(rows))
    assert shapes == {"w": (4, 3), "unused": (4, 2, 2), "empty": (4, 0, 3)}
    assert not rows["unused"].any()
    assert_rows(rows["w"][1:], np.insert(by_hand(W, X), 0, 0, 0)[[1, 2, 3]])
    assert not rows["w"][0].any()


@pytest.mark.parametrize("size", [{"group_size": 1}, {"num_rows": 2}])
def test_rows_of_losses_and_examples(size):
    group_size = size.get("group_size", 3)
    grad = co.task_value_and_grad(losses, batch_argnums=(1, 2), has_aux=False, **size)
    values, rows = jax.jit(grad)(W, X, Y)
    parts = [slice(i, i + group_size) for i in range(0, 6, group_size)]
    assert_rows(rows, np.concatenate([by_hand(W, X[at], Y[at]) for at in parts]))
    each = [losses(W, X[at], Y[at])["cubic"] for at in parts]
    np.testing.assert_allclose(values["cubic"], jnp.stack(each), rtol=1e-5)
    one = lambda w, x: jnp.stack([x @ w, (x @ w) ** 2])
    alone = co.task_grad(one, keep_batch_dim=False, group_size=1)(W, X)
    wanted = jax.vmap(jax.jacrev(one), (None, 0))(W, X).reshape(12, 3)
    assert_rows(alone, wanted)


def test_factored_rows_of_losses_and_examples():
    w = jnp.float32(np.random.default_rng(2).normal(size=(3, 40)))
    v = jnp.float32(np.random.default_rng(3).normal(size=(40, 30)))

    def of_layers(p, x):
        out = jnp.tanh(x @ p[0]) @ p[1]
        return jnp.stack([jnp.mean(out**2), jnp.mean(out)])

    rows = co.task_grad(of_layers, group_size=1)([w, v], X)
    assert co.is_outer_product(rows[1])
    own = lambda p, x: jax.jacrev(of_layers)(p, x[None])
    wanted = jax.vmap(own, (None, 0))([w, v], X)
    for x, y in zip(co.materialize(rows), wanted, strict=True):
        assert_rows(x, y.reshape(12, *y.shape[2:]))


def test_microbatches():
    """The mean over them, in float32 at least, with aux of each."""

    def with_aux(w, x, y):
        return losses(w, x, y), x.sum()

    options = {"batch_argnums": (1, 2), "microbatch_size": 2, "has_aux": True}
    (values, aux), rows = co.task_value_and_grad(with_aux, **options)(W, X, Y)
    assert_rows(rows, by_hand(W, X, Y))
    np.testing.assert_allclose(values["square"], losses(W, X, Y)["square"], rtol=1e-6)
    np.testing.assert_allclose(aux, X.reshape(3, 6).sum(1), rtol=1e-5)
    many = jnp.full((4096, 1), 1 + 2.0**-8, jnp.bfloat16)
    low = lambda w, x: {"a": jnp.mean(x[:, 0] * w)}
    rows = co.task_grad(low, microbatch_size=1)(jnp.ones(1, jnp.bfloat16), many)
    assert rows.dtype == jnp.bfloat16
    assert float(rows[0, 0]) == pytest.approx(1 + 2.0**-8, rel=2.0**-8)  # a rounding


def test_microbatches_stay_factored_where_their_terms_are_smaller():
    """Of a wide trunk and a tied table; of a narrow one rows are arrays."""
    draw = lambda seed, *shape: jnp.float32(
        np.random.default_rng(seed).normal(size=shape)
    )
    params = {
        "wide": draw(0, 64, 48),
        "words": draw(1, 64, 48),
        "narrow": draw(2, 8, 2),
    }
    x, words = draw(3, 6, 64), jnp.arange(6) * 7

    def several(p, x, words):
        out = jnp.tanh(x @ p["wide"] + p["words"][words]) @ p["words"].T
        ends = jnp.tanh(out[:, :8] @ p["narrow"])
        return {"a": jnp.mean(out**2), "b": jnp.mean(ends), "c": jnp.mean(ends**2)}

    options = {"batch_argnums": (1, 2), "microbatch_size": 2}
    rows = jax.jit(lambda *given: co.task_grad(several, **options)(*given))
    got, wanted = rows(params, x, words), jax.jacrev(several)(params, x, words)
    for name, leaf in got.items():
        assert co.is_outer_product(leaf) == (name != "narrow")
        each = jnp.stack([wanted[key][name] for key in "abc"])
        # float32 rounding of sums of at most 384 terms
        assert_close(co.materialize(leaf), each, 1e-5)


def test_keys():
    """Groups and microbatches get their own; the whole batch the one that is given."""

    def noisy(w, x, key):
        keep = jax.random.bernoulli(key, 0.5, (3,)).astype(jnp.float32)
        return {"a": (keep * w).sum(), "b": -(keep * w).sum()}

    key, ones = jax.random.key(0), jnp.ones((6, 3))
    mask = lambda key: np.float32(jax.random.bernoulli(key, 0.5, (3,)))
    own = [mask(jax.random.fold_in(key, i)) for i in range(3)]
    assert len(np.unique(own, axis=0)) > 1
    given = (W, ones, key)
    rows = co.task_grad(noisy)(*given)
    assert_rows(rows, [mask(key), -mask(key)])
    rows = co.task_grad(noisy, group_size=2, prng_argnum=2)(*given)
    assert_rows(rows, [sign * x for x in own for sign in (1, -1)])
    rows = co.task_grad(noisy, microbatch_size=2, prng_argnum=2)(*given)
    assert_rows(rows, [np.mean(own, 0), -np.mean(own, 0)])


def test_dtypes():
    half = lambda w, x: {"a": (w * 2).sum().astype(jnp.float16), "b": w.sum()}
    values, rows = co.task_value_and_grad(half)(W, X)
    assert values["a"].dtype == jnp.float16
    assert_rows(rows, [2 * np.ones(3), np.ones(3)])
    with jax.enable_x64():
        wide = lambda w: {"a": (w**3).sum(), "b": jnp.sin(w).sum()}
        w = jnp.asarray(W, jnp.float64)
        rows = co.task_grad(wide)(w)
        assert rows.dtype == jnp.float64
        np.testing.assert_allclose(rows, [3 * w**2, jnp.cos(w)], rtol=1e-15)


@pytest.mark.parametrize("check_vma", [True, False])
def test_inside_shard_map_rows_are_of_the_examples_there(check_vma):
    """And their mean over devices is that of all."""
    mesh = jax.make_mesh((3,), ("data",), devices=jax.devices()[:3])
    params = {"w": W, "wide": jnp.eye(3, 40), "unused": jnp.ones(2)}
    rule = co.subspace_weighting()

    def wide(p, x):
        out = x @ p["wide"]
        own = {"out": jnp.mean(out**2), "outer": jnp.mean(out**3)}
        return losses(p["w"], x) | own

    def of_device(params, x):
        rows = co.task_grad(wide)(params, x)
        turns = co.task_grad(wide, microbatch_size=1)(params, x)
        groups = co.task_grad(wide, group_size=1)(params, x)
        mean = jax.lax.pmean(co.materialize(rows), "data")
        assert rows["wide"].is_shared
        sharded = co.sharded(rule, "data")
        update, _ = sharded.update(rows, rule.init(params), params)
        turns = jax.lax.pmean(co.materialize(turns), "data")
        return mean, turns, co.materialize(groups), update

    run = jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(P(), P("data")),
        out_specs=(P(), P(), P("data"), P()),
        check_vma=check_vma,
    )
    x = jax.device_put(X, jax.NamedSharding(mesh, P("data")))
    mean, turns, groups, update = jax.jit(run)(params, x)
    wanted = co.materialize(co.task_grad(wide)(params, X))
    each = co.materialize(co.task_grad(wide, group_size=1)(params, X))
    own = [
        co.task_grad(wide, materialize=True)(params, part)
        for part in x.reshape(3, 2, 3)
    ]
    rows = jax.tree.map(lambda *rows: jnp.concatenate(rows), *own)
    reduced = rule.update(rows, rule.init(params), params)[0]
    for got, right in (
        *((mean, wanted), (turns, wanted), (groups, each), (update, reduced)),
    ):
        jax.tree.map(assert_rows, got, right)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_under_jit_on_a_mesh_rows_are_of_all_examples(kind):
    axes = (getattr(jax.sharding.AxisType, kind),)
    mesh = jax.make_mesh((2,), ("data",), axes, devices=jax.devices()[:2])
    wide = jnp.float32(np.random.default_rng(4).normal(size=(3, 40)))

    def of_two(p, x):
        h = jnp.tanh(x @ p["wide"])
        return jnp.stack([jnp.mean(h**2), jnp.mean(h @ p["out"])])

    params = {"wide": wide, "out": wide.T @ jnp.ones((3, 30))}
    x = jax.device_put(X, jax.NamedSharding(mesh, P("data")))
    params_there = jax.device_put(params, jax.NamedSharding(mesh, P()))
    rule = co.mgda()

    @jax.jit
    def step(params, x):
        rows = co.task_grad(of_two)(params, x)
        update = rule.update(rows, rule.init(params), params)[0]
        return co.materialize(rows), update

    with jax.set_mesh(mesh):
        rows, update = step(params_there, x)
    wanted, right = step(params, X)
    jax.tree.map(assert_rows, rows, wanted)
    jax.tree.map(assert_rows, jax.device_get(update), right)
