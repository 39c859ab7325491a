"""A penalty in the loss, and a tied table: one answer from whatever holds the rows."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from tests._models import assert_close, transformer
from tests._used_otherwise import penalized, tied

pytestmark = pytest.mark.standard_promotion

RULES = {
    "mean": co.mean(),
    "clipped": co.clipped_sum(0.5),
    "sign_consensus": co.sign_consensus(quorum=0.7),
    "cosine_filter": co.cosine_filter(0.5),
    "median": co.median(),
    "geometric_median": co.geometric_median(),
}
QUICK = "cosine_filter"
each = pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=[] if x == QUICK else pytest.mark.slow) for x in RULES],
)


def wanted(model, rule):
    """Of rows multiplied out."""
    rows = co.per_example_grad(model.loss, materialize=True)(model.params, model.batch)
    return rule.update(rows, rule.init(model.params), model.params)[0]


def check(found, expected, name=QUICK):
    # float32 rounding of products in parts, of sums of at most 192 terms; norms are
    # clipped by bounds, which are farther from those of sums of 1024 products each
    tolerance = 1e-3 if name == "clipped" else 2e-5
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for x, y in pairs:
        assert_close(x, y, tolerance)


@pytest.mark.slow
@each
def test_in_memory_in_microbatches_and_in_the_backward_pass(name):
    model, rule = penalized(), RULES[name]
    state = rule.init(model.params)
    ways = [{}, {"microbatch_size": 2}]
    ways += [] if name == "median" else [{"hold_rows": False}]

    def run(params, batch):
        of = lambda **way: co.value_and_reduced_grad(model.loss, rule, **way)
        rows = co.per_example_grad(model.loss)(params, batch)
        assert co.is_outer_product(rows["words"])
        plain = rule.update(rows, state, params)[0]
        return [plain, *(of(**way)(params, batch, state=state)[1] for way in ways)]

    expected = wanted(model, rule)
    for found in jax.jit(run)(model.params, model.batch):
        check(found, expected, name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", RULES)
def test_on_a_mesh(name, kind):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    place = NamedSharding(mesh.abstract_mesh, P())
    look_up = lambda table, tokens: table.at[tokens].get(out_sharding=place)
    plain = transformer(look_up) if kind == AxisType.Explicit else transformer()
    squares = lambda p: sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(p))
    loss = lambda p, x: plain.loss(p, x) + 1e-2 * squares(p)
    rule, model = RULES[name], penalized()
    across = co.sharded(rule, "data", mesh=mesh)

    def run(params, batch):
        rows = co.per_example_grad(loss)(params, batch)
        assert co.is_outer_product(rows["words"])
        state = rule.init(params)
        found = [rule.update(rows, state, params)[0]] if kind == AxisType.Auto else []
        return [*found, across.update(rows, across.init(params), params)[0]]

    put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
    given = jax.tree.map(put, model.params), put(model.batch, "data")
    expected = wanted(model, rule)
    for found in jax.jit(run)(*given):
        check(found, expected, name)


@pytest.mark.slow
def test_in_shard_map():
    model, rule = penalized(), RULES["cosine_filter"]
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    across = co.sharded(rule, "data")

    def run(params, batch):
        rows = co.per_example_grad(model.loss)(params, batch)
        assert co.is_outer_product(rows["words"])
        return across.update(rows, across.init(params), params)[0]

    specs = {"in_specs": (P(), P("data")), "out_specs": P(), "mesh": mesh}
    found = jax.jit(jax.shard_map(run, **specs))(model.params, model.batch)
    check(found, wanted(model, rule))


def test_nothing_of_all_rows_is_held():
    """Of 64 rows less than 8 times the parameters: the penalty is held once."""
    params = {"w": jnp.ones((256, 256))}

    def loss(p, x):
        return jnp.mean(jnp.tanh(x @ p["w"]) ** 2) + 1e-3 * jnp.sum(p["w"] ** 2)

    def step(params, x):
        rows, rule = co.per_example_grad(loss)(params, x), co.cosine_filter(0.5)
        return rule.update(rows, rule.init(params), params)[0]

    lowered = jax.jit(step).lower(params, jnp.ones((64, 256)))
    temporary = lowered.compile().memory_analysis().temp_size_in_bytes
    assert temporary < 8 * 4 * 256 * 256


def test_a_tied_table_is_kept_in_two_parts(capsys):
    model = tied()
    co.explain(model.loss, model.params, model.batch)
    wanted = "factored: 6 x (40 + 16) and 6 x (40 looked up + 16)"
    assert wanted in capsys.readouterr().out


def test_explain_names_what_rows_share(capsys):
    model = penalized()
    co.explain(model.loss, model.params, model.batch)
    said = capsys.readouterr().out
    assert "factored: 3 x (16 + 64) and an array that all rows share" in said


@pytest.mark.slow
@pytest.mark.parametrize("make", [penalized, tied])
def test_rows_of_several_steps(make):
    """Kept for later they are those of arrays."""
    model, rule = make(), co.accumulate(co.cosine_filter(0.5), 2)
    other = model.batch[::-1]

    def run(materialize):
        find = co.per_example_grad(model.loss, materialize=materialize)
        state = rule.init(model.params)
        for batch in (model.batch, other):
            rows = find(model.params, batch)
            update, state = rule.update(rows, state, model.params)
        return update

    found, expected = jax.jit(lambda: (run(False), run(True)))()
    check(found, expected)
