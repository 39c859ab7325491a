"""Derivatives of an update by its rows: of learning to learn, of hyperparameters.

Finite wherever the update is, whatever a row holds that does not count; a row of weight
0 is no row; and by differences, for rules that do what they do smoothly.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import consensus_optax as co
from tests.zoo import FACTORIES

COUNT, SIZE, AWAY = 6, 7, 4
ROWS = np.random.default_rng(0).normal(size=(COUNT, SIZE))
TOWARD = np.arange(1.0, SIZE + 1)
KEPT = [i for i in range(COUNT) if i != AWAY]
# They loop for as long as there is anything left to decide: see docs/limits.md.
LOOPING = (
    "sign_consensus()",
    "caf",
    "consensus_among_accepted",
    "consensus_after_mixing",
)


def gain(reducer, dtype=jnp.float32):
    """(rows, weights) to the update along a direction."""
    params, toward = jnp.zeros(SIZE, dtype), jnp.asarray(TOWARD, dtype)
    state = reducer.init(params)

    def along(rows, weights):
        return toward @ reducer.update(rows, state, params, weights=weights)[0]

    return along


def smooth():
    """Rows of a factory each, but those that loop."""
    for row in FACTORIES:
        if not str(row).startswith(LOOPING):
            yield pytest.param(row, id=str(row), marks=pytest.mark.slow)


@pytest.mark.parametrize("row", [*smooth()])
def test_what_does_not_count_does_no_harm(row):
    plain, zero, broken, far = (ROWS.copy() for _ in range(4))
    zero[2], broken[AWAY], far[AWAY] = 0, np.nan, 1e30
    rows = jnp.asarray(np.stack([plain, zero, broken, far, plain]), jnp.float32)
    weights = jnp.ones((5, COUNT)).at[3:, AWAY].set(0)
    by_rows = jax.jit(jax.vmap(jax.grad(gain(row.make(num_rows=COUNT)))))
    all_there, with_zero, without, too, same = np.asarray(by_rows(rows, weights))
    assert np.isfinite(all_there).all()
    assert np.isfinite(with_zero).all()
    for found in (without, too, same):
        assert not found[AWAY].any()
    few = jax.jit(jax.grad(gain(row.make(num_rows=len(KEPT)))))
    alone = np.asarray(few(rows[0, np.array(KEPT)], jnp.ones(len(KEPT))))
    # sums over rows in another order, and quotients of them: some hundred roundings
    atol = 512 * np.finfo(np.float32).eps * np.abs(alone).max()
    for found in (without, too, same):
        np.testing.assert_allclose(found[KEPT], alone, rtol=0, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPING)
def test_what_loops_says_so(name):
    (row, *_) = (row for row in FACTORIES if str(row).startswith(name))
    with pytest.raises(ValueError, match="Reverse-mode differentiation"):
        jax.grad(gain(row.make(num_rows=COUNT)))(jnp.asarray(ROWS), jnp.ones(COUNT))


SMOOTH = {
    "median": co.median(),
    "winsorized": co.winsorized_mean(0.2),
    "trimmed": co.trimmed_mean(1),
    "clipped": co.chain(co.clip_examples(1.0), co.mean()),
    "normalized": co.chain(co.normalize_examples(), co.mean()),
    "soft filter": co.cosine_filter(1.2, temperature=0.3),
    "subspace": co.subspace_weighting(),
    "centered": co.centered_clipping(1.0, iterations=2),
    "geometric median": co.geometric_median(),
    "signs": co.sign_consensus(0.6, "agreeing_mean"),
    "after a memory": co.chain(co.row_momentum(0.5, COUNT), co.median()),
}
HALF = [1.0, 1, 1, 1, 0, 1]
UNEQUAL = [1.0, 2, 0.5, 1, 3, 1]


@pytest.mark.slow
@pytest.mark.parametrize("weights", [HALF, UNEQUAL], ids=["one away", "unequal"])
@pytest.mark.parametrize("name", SMOOTH)
def test_they_are_those_of_differences(name, weights):
    direction = np.random.default_rng(1).normal(size=ROWS.shape)
    with jax.enable_x64(True):
        along = gain(SMOOTH[name], jnp.float64)
        weights = jnp.asarray(weights, jnp.float64)
        of = jax.jit(lambda step: along(ROWS + step * direction, weights))
        step = 1e-5
        wanted = (of(step) - of(-step)) / (2 * step)
        found = jax.jvp(of, (0.0,), (1.0,))[1]
        backward = jax.grad(of)(0.0)
        # third derivatives are of the size of a few tens; rounding 1e-16 / step
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(backward, found, rtol=1e-9)


@pytest.mark.parametrize("rule", [co.median(), co.winsorized_mean(0.2)], ids=repr)
def test_an_order_statistic_of_many_rows_is_one_of_them(rule):
    """Beyond a sorting network, and where several rows are equal."""
    rows = np.random.default_rng(2).normal(size=(65, SIZE)).round(1)
    by_rows = jax.grad(gain(rule))(jnp.asarray(rows, jnp.float32), jnp.ones(65))
    # all rows moved by one moves the update by one: sums of 65 float32 numbers
    np.testing.assert_allclose(by_rows.sum(0), TOWARD, rtol=65 * 2.0**-23)


@pytest.mark.parametrize("way", [{"hold_rows": False}, {"microbatch_size": 4}], ids=str)
@pytest.mark.parametrize(
    "rule", [co.sign_consensus(0.6, "mean"), co.median()], ids=repr
)
def test_they_do_not_hang_on_how_rows_are_made(rule, way):
    x = jnp.asarray(ROWS, jnp.float32)
    loss = lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2)

    def after(w, way):
        step = co.value_and_reduced_grad(loss, rule, **way)
        return step(w, x, state=rule.init(w))[1].sum()

    w = jnp.linspace(0.1, 1, SIZE)
    got, wanted = jax.grad(after)(w, way), jax.grad(after)(w, {})
    # a sum of six rows of seven terms each
    atol = 64 * np.finfo(np.float32).eps * np.abs(wanted).max()
    np.testing.assert_allclose(got, wanted, rtol=0, atol=atol)


CLIPPED = co.chain(co.clip_examples(0.1), co.mean())
WORDS = jax.random.randint(jax.random.key(3), (8, 32), 0, 50)


def of_words(params, words, place=None):
    """A look-up and a product, of which rows are factored."""
    hidden = params["table"].at[words].get(out_sharding=place)
    return jnp.mean(jnp.tanh(hidden @ params["kernel"]) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [None, AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize(
    "rule",
    [co.mean(), co.cosine_filter(1.5), CLIPPED, co.median(), co.geometric_median()],
    ids=repr,
)
def test_of_factored_rows_they_are_those_of_arrays(rule, kind):
    """Indices of a look-up have none; one row is away; on a mesh of either kind."""
    draw = lambda number, *shape: jax.random.normal(jax.random.key(number), shape) / 3
    params = {"table": draw(0, 50, 40), "kernel": draw(1, 40, 40)}
    weights = jnp.ones(8).at[2].set(0)

    def after(params, words, materialize):
        explicit = kind == AxisType.Explicit and not materialize
        loss = functools.partial(of_words, place=PartitionSpec() if explicit else None)
        rows = co.per_example_grad(loss, materialize=materialize)(params, words)
        factored = [isinstance(x, co.OuterProduct) for x in rows.values()]
        assert materialize or any(factored)
        given = {"weights": weights}
        update, _ = rule.update(rows, rule.init(params), params, **given)
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(update))

    by = lambda *given: jax.jit(jax.grad(after), static_argnums=2)(*given)
    wanted = by(params, WORDS, True)
    if kind is None:
        got = by(params, WORDS, False)
    else:
        mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
        put = lambda x, *spec: jax.device_put(
            x, NamedSharding(mesh, PartitionSpec(*spec))
        )
        with jax.set_mesh(mesh):
            got = by(put(params), put(WORDS, "data"), False)
    for name, leaf in wanted.items():
        # sums of 8 rows of 32 terms in another order, twice
        atol = 512 * np.finfo(np.float32).eps * np.abs(leaf).max()
        np.testing.assert_allclose(jax.device_get(got[name]), leaf, rtol=0, atol=atol)
