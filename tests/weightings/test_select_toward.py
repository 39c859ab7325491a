"""Rows that pull the way of a target, against plain NumPy, wherever rows are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from consensus_optax import diagnostics
from tests._models import assert_close

PARAMS = {"w": jnp.zeros((6, 4)), "b": jnp.zeros(8)}
ROWS = 8
OPTIONS = {
    "hard": {"min_cosine": 0.1},
    "soft": {"min_cosine": 0.1, "temperature": 0.2},
    "top_k": {"min_cosine": -1.0, "top_k": 3},
    "top_k by product": {"min_cosine": -1.0, "top_k": 3, "by": "product"},
}


@functools.cache
def given(factored=False):
    rng = np.random.default_rng(2)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    sizes = jnp.array([1.0, 2, 1, 0.25, 4, 1, 0.5, 8])
    left, right, b = draw(ROWS, 1, 6), draw(ROWS, 1, 4), draw(ROWS, 8)
    w = co.OuterProduct(left * sizes[:, None, None], right, (6, 4))
    rows = {"w": w if factored else w.materialize(), "b": b * sizes[:, None]}
    return rows, {"w": draw(6, 4), "b": draw(8)}


def flat(tree, count=None):
    shape = (-1,) if count is None else (count, -1)
    leaves = [tree[name] for name in PARAMS]
    return np.concatenate(
        [np.asarray(x, np.float64).reshape(shape) for x in leaves], -1
    )


def expected(
    rows, target, weights, min_cosine, temperature=None, top_k=None, by="cosine"
):
    g, t = flat(rows, ROWS), flat(target)
    inner = g @ t
    cosine = inner / np.linalg.norm(g, axis=1) / np.linalg.norm(t)
    passes = (cosine >= min_cosine).astype(float)
    if temperature:
        passes = 1 / (1 + np.exp(-(cosine - min_cosine) / temperature))
    passes *= weights > 0
    if top_k:
        score = np.where(passes > 0, inner if by == "product" else cosine, -np.inf)
        passes[np.argsort(-score)[top_k:]] = 0
    mass = passes * weights
    return mass @ g / mass.sum(), passes.sum()


def test_the_best_by_cosine_are_not_the_best_by_product():
    """Of the rows of these tests."""
    chosen = [
        expected(*given(), np.ones(ROWS), **OPTIONS[name])[0]
        for name in ("top_k", "top_k by product")
    ]
    assert np.abs(chosen[0] - chosen[1]).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("factored", [False, True])
def test_equals_a_plain_loop(name, factored):
    rule, (rows, target) = co.select_toward(**OPTIONS[name]), given(factored)
    weights = jnp.array([1.0, 2, 0, 1, 1, 3, 1, 1])
    update, state = jax.jit(rule.update)(
        rows, rule.init(PARAMS), PARAMS, weights=weights, target=target
    )
    wanted, accepted = expected(
        given()[0], target, np.asarray(weights), **OPTIONS[name]
    )
    # sums of 32 float32 products, then of 8 rows of up to 8 times the usual size
    np.testing.assert_allclose(flat(update), wanted, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(state.rule_state.accepted, accepted, rtol=1e-5)


def test_no_row_is_multiplied_out():
    rule, rows = (
        co.select_toward(),
        co.OuterProduct(jnp.ones((8, 2, 30)), jnp.ones((8, 2, 40)), (30, 40)),
    )
    params = jnp.zeros((30, 40))
    program = jax.jit(rule.update).lower(rows, rule.init(params), params, target=params)
    assert "8,30,40" not in program.compile().as_text()


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [None, 0.3])
def test_toward_the_last_update_is_the_filter_against_it(temperature):
    """Which reads a Gramian for the same decision."""
    options = {"temperature": temperature}
    ours = co.select_toward("previous", min_cosine=0.1, **options)
    other = co.previous_update_filter(0.9, **options)
    states = ours.init(PARAMS), other.init(PARAMS)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        rows = {
            k: jnp.asarray(rng.normal(size=(ROWS, *x.shape)) + 0.3, jnp.float32)
            for k, x in PARAMS.items()
        }
        (update, first), (same, second) = (
            rule.update(rows, state, PARAMS)
            for rule, state in zip((ours, other), states, strict=True)
        )
        jax.tree.map(lambda x, y: assert_close(x, y, 1e-5), update, same)
        states = first, second


@pytest.mark.slow
def test_a_target_of_zero_lets_all_pass():
    rule, (rows, target) = co.select_toward(top_k=1), given()
    zero = jax.tree.map(jnp.zeros_like, target)
    update, _ = rule.update(rows, rule.init(PARAMS), PARAMS, target=zero)
    mean, _ = co.mean().update(rows, co.mean().init(PARAMS), PARAMS)
    jax.tree.map(lambda x, y: assert_close(x, y, 1e-6), update, mean)


def test_nobody_passes_and_bad_rows():
    rule, (rows, target) = co.select_toward(min_cosine=1.0), given()
    update, state = rule.update(rows, rule.init(PARAMS), PARAMS, target=target)
    assert not bool(state.consensus_ready)
    assert not flat(update).any()
    bad = {**rows, "b": rows["b"].at[0, 0].set(jnp.nan)}
    rule = co.select_toward()
    weights = jnp.ones(ROWS).at[0].set(0)
    first, state = rule.update(bad, rule.init(PARAMS), PARAMS, target=target)
    again, _ = rule.update(
        rows, rule.init(PARAMS), PARAMS, target=target, weights=weights
    )
    jax.tree.map(lambda x, y: assert_close(x, y, 1e-6), first, again)
    assert int(state.num_nonfinite) == 1


@pytest.mark.slow
def test_it_selects_for_another_rule_and_for_every_leaf():
    rows, target = given()
    score = np.asarray(diagnostics.influence(rows, target))
    weights = jnp.asarray(score > 0, jnp.float32)
    for chosen in (co.median(), co.sign_vote()):
        rule = co.among(co.select_toward(), chosen)
        update, _ = rule.update(rows, rule.init(PARAMS), PARAMS, target=target)
        wanted, _ = chosen.update(rows, chosen.init(PARAMS), PARAMS, weights=weights)
        jax.tree.map(lambda x, y: assert_close(x, y, 1e-6), update, wanted)
    rule = co.per_leaf(co.select_toward())
    update, _ = rule.update(rows, rule.init(PARAMS), PARAMS, target=target)
    for name in PARAMS:
        one = co.select_toward()
        alone, _ = one.update(
            rows[name], one.init(PARAMS[name]), PARAMS[name], target=target[name]
        )
        assert_close(update[name], alone, 1e-6)


SPECS = {"w": P("model"), "b": P()}


@pytest.mark.slow
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("target", ["given", "previous"])
def test_on_a_mesh(inside, target):
    """Inside and outside of ``shard_map``; outside with parameters that are cut."""
    rule = co.select_toward(target, min_cosine=0.05)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    rows, given_target = given()
    extra = {"target": given_target} if target == "given" else {}

    def two_steps(rule, rows, params, extra):
        state, outs = rule.init(params), []
        for _ in range(2):
            update, state = rule.update(rows, state, params, **extra)
            outs.append(update)
        return outs

    expected = two_steps(rule, rows, PARAMS, extra)
    if inside:
        on_mesh = co.sharded(rule, "data")
        run = jax.shard_map(
            functools.partial(two_steps, on_mesh),
            mesh=mesh,
            in_specs=(P("data"), P(), P()),
            out_specs=P(),
        )
        got = jax.jit(run)(rows, PARAMS, extra)
    else:
        on_mesh = co.sharded(rule, "data", mesh=mesh, param_specs=SPECS)
        put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
        params = {name: put(x, SPECS[name]) for name, x in PARAMS.items()}
        got = jax.jit(functools.partial(two_steps, on_mesh))(rows, params, extra)
    # sums over 8 rows and 32 coordinates in another order
    jax.tree.map(lambda x, y: assert_close(x, y, 1e-5), got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["microbatches", "inside", "microbatches on a mesh"])
@pytest.mark.parametrize("target", ["given", "previous"])
def test_rows_that_are_computed(way, target):
    """A scanned layer among them, so that something is reduced inside of the pass."""
    rng = np.random.default_rng(3)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / 8, jnp.float32)
    params = {"layers": draw(3, 96, 96), "head": draw(96, 4)}
    x, direction = draw(ROWS, 2, 96), {"layers": draw(3, 96, 96), "head": draw(96, 4)}
    rule = co.select_toward(target, min_cosine=0.0, by="product", top_k=5)
    extra = {"target": direction} if target == "given" else {}

    def loss(params, x):
        layer = lambda h, w: (jnp.tanh(h @ w), None)
        return jnp.sum(
            (jax.lax.scan(layer, x, params["layers"])[0] @ params["head"]) ** 2
        )

    def two_steps(rule, params, x, extra, **options):
        state, outs = rule.init(params), []
        run = co.value_and_reduced_grad(loss, rule, **options)
        for _ in range(2):
            _, update, state = run(params, x, state=state, extra=extra)
            outs.append(update)
        return outs

    ways = {"microbatches": {"microbatch_size": 3}, "inside": {"hold_rows": False}}
    wanted = jax.jit(functools.partial(two_steps, rule))(params, x, extra)
    if way in ways:
        run = functools.partial(two_steps, rule, **ways[way])
    else:
        mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
        on_mesh = co.sharded(rule, "data")
        run = jax.shard_map(
            functools.partial(two_steps, on_mesh, microbatch_size=1),
            mesh=mesh,
            in_specs=(P(), P("data"), P()),
            out_specs=P(),
        )
    got = jax.jit(run)(params, x, extra)
    # float32 sums over 96 and over 8 rows, in another order
    jax.tree.map(lambda x, y: assert_close(x, y, 1e-5), got, wanted)


def test_what_is_no_target():
    rule, (rows, target) = co.select_toward(), given()
    update = functools.partial(rule.update, rows, rule.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="`target` must be a tree like"):
        update()
    with pytest.raises(ValueError, match="`target` must have their parameters' shapes"):
        update(target={**target, "b": jnp.ones(7)})
    with pytest.raises(ValueError, match="`target` must be one of 'given', 'previous'"):
        co.select_toward("last")
