"""Rows of any finite size: the same decision as the same rows at a usual size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import consensus_optax as co
from consensus_optax._rules.kinds import Reads
from tests._stacks import P, factored, matrix, params, tree
from tests.engines.test_sources import (
    ROWS,
    SOURCES,
    STEPS,
    given_rows,
    in_steps,
    stacks,
    stepper,
)
from tests.zoo import KINDS, ZOO

pytestmark = pytest.mark.slow

# Of 2: entries lie between 1e-33 and 1e33, squares of most of them are no floats.
POWERS = (0, -60, -83, -100, 83, 100)
NAMES = ("ordinary", "weighted", "zero row", "absent", "nearly equal", "equal")


def of_usual_and_other_sizes(names, dtype=np.float32):
    """Rows (len(POWERS) * len(names), STEPS, ROWS, P) and their weights."""
    known, rows, weights = stacks()
    chosen = [known.index(name) for name in names]
    sizes = 2.0 ** np.array(POWERS)
    rows = sizes[:, None, None, None, None] * rows[chosen].astype(np.float64)
    weights = np.broadcast_to(weights[chosen], (len(POWERS), len(chosen), ROWS))
    merged = rows.reshape(-1, STEPS, ROWS, P), weights.reshape(-1, ROWS)
    with np.errstate(over="ignore"):  # an absent row of one stack
        return tuple(x.astype(dtype) for x in merged)


def cases():
    now = {str(row): row for row in KINDS}
    for index, row in enumerate(ZOO):
        if row.degree is not None:
            marks = () if str(row) in now else pytest.mark.whole_zoo
            yield pytest.param(row, marks=marks, id=f"{row}{index}")


@pytest.mark.parametrize("power", [-74, 74])
@pytest.mark.parametrize(
    "rule",
    [
        co.normalized_mean(),
        co.chain(co.normalize_examples(), co.mean()),
        co.previous_update_filter(1.0),
        co.cosine_filter(1.2),
    ],
    ids=repr,
)
def test_of_rows_that_the_program_knows(rule, power):
    """Constants, and a state of zeros: XLA would square them apart from their scale."""
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
    for given in (rows * 2.0**power, rows * 2.0**power @ jnp.ones((3, 1))):
        like = jnp.zeros(given.shape[1:])
        run = lambda rows, like=like: rule.update(rows, rule.init(like), like)
        wanted, state = rule.update(given, rule.init(like), like)  # nothing is compiled
        for found, new in (
            jax.jit(lambda given=given, run=run: run(given))(),
            jax.jit(run)(given),
        ):
            assert bool(new.consensus_ready) == bool(state.consensus_ready)
            # sums of few terms, in another order
            atol = 16 * np.finfo(np.float32).eps * float(jnp.abs(wanted).max())
            np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("row", [*cases()])
def test_rows_of_any_size_decide_alike(row):
    reducer = row.make(num_rows=ROWS)
    rows, weights = of_usual_and_other_sizes(NAMES)
    steps = jax.vmap(stepper(reducer, given_rows), (0, 0, None))
    start = reducer.init(params())
    update, seen = jax.jit(steps)(tree(rows), jnp.asarray(weights), start)
    update = matrix(update, 2).reshape(len(POWERS), len(NAMES), STEPS, P)
    power = 1 + row.degree
    for k, got in zip(POWERS, update, strict=True):
        # Exactly so, but for squares that are lost beside larger ones.
        size = np.abs(update[0]).max((-1, -2))
        gap = np.abs(got / 2.0 ** (k * power) - update[0]).max((-1, -2))
        off = dict(zip(NAMES, gap / np.maximum(size, 1e-300), strict=True))
        assert max(off.values()) <= 1e-5, (k, off)
    for facts in seen:
        facts = np.asarray(facts).reshape(len(POWERS), -1)
        assert (facts == facts[:1]).all()


@pytest.mark.parametrize("reads", [Reads.GRAMIAN, Reads.AFFINE, Reads.NORMS])
@pytest.mark.parametrize("power", POWERS[1:])
def test_factors_of_any_size_decide_alike(reads, power):
    """The factor from the backward pass is scaled, of every kind of product."""

    def weigh(products, roster, state):
        squares = products if reads == "norms" else products.diagonal()
        return roster.shares / jnp.sqrt(squares), state

    rule = co.reducer(co.Weighting(weigh, reads=reads, degree=-1))
    rows, parameters, _ = factored()

    def update(factor):
        multiply = lambda leaf: leaf.astype(jnp.float32) * factor
        scaled = {
            name: co.OuterProduct(
                *(leaf.left, multiply(leaf.right), leaf.row_shape, leaf.steps)
            )
            if co.is_outer_product(leaf)
            else multiply(leaf)
            for name, leaf in rows.items()
        }
        return rule.update(scaled, rule.init(parameters), parameters)[0]

    usual, other = jax.jit(update)(jnp.float32(1)), jax.jit(update)(2.0**power)
    # sums in another order, of 18 terms and fewer, and a square root
    compare = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    jax.tree.map(compare, usual, other)


def test_a_row_far_away_does_not_move_the_scale():
    """It is taken out instead, as its squared norm overflows; also rows of zeros."""
    rows = jnp.array([[1.0, 2.0], [2.0, 1.0], [1.5, 1.5], [0.0, 0.0], [1e25, 1e25]])
    rule, zeros = co.krum(1), jnp.zeros(2)
    update, state = rule.update(rows, rule.init(zeros), zeros)
    np.testing.assert_allclose(update, [1.5, 1.5])
    assert state.consensus_ready


APART = {
    "of rows in memory": co.normalized_mean(),
    "transformed": co.chain(co.normalize_examples(), co.mean()),
    "microbatches of 5": co.chain(co.normalize_examples(), co.mean()),
    "backward pass": co.chain(co.normalize_examples(), co.mean()),
    "mesh": co.normalized_mean(),
    "microbatches of 2 on a mesh": co.normalized_mean(),
    "backward pass on a mesh": co.normalized_mean(),
}


@pytest.mark.parametrize("source", APART)
def test_each_row_is_normalized_at_its_own_size(source):
    """Neither that of all rows, nor of its microbatch or device."""
    rows = np.random.default_rng(2).normal(size=(1, STEPS, ROWS, P))
    rows *= 10.0 ** np.linspace(-33, 33, ROWS)[:, None]
    rows[:, :, 5] = 0
    rule, known = APART[source], source if source in SOURCES else None
    ones = np.ones((1, ROWS), np.float32)
    update, seen = in_steps(rule, known, rows.astype(np.float32), ones, stepper)
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    wanted = (rows / np.where(lengths > 0, lengths, 1)).mean(2)
    # of 12 rows of length 1
    np.testing.assert_allclose(matrix(update, 2), wanted, rtol=0, atol=1e-6)
    assert (np.asarray(seen[1]) == ROWS).all()
    assert not np.asarray(seen[2]).any()


def test_lengths_are_told_in_units_of_the_rows_they_are_of():
    """The size at which rows were normalized is none of what follows."""
    rule = co.chain(co.normalize_examples(), co.l2_filter(5.0, relative=False))
    rows, zeros = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), jnp.zeros(2)
    told = [
        rule.update(size * rows, rule.init(zeros), zeros)[1].rule_state.rule_state
        for size in (1.0, 1e25)
    ]
    np.testing.assert_allclose(told[1], told[0], rtol=1e-6)


def test_a_rule_that_says_nothing_gets_products_as_they_are():
    def weigh(gramian, roster, state):
        assert roster.scale == 1
        return jnp.where(gramian.diagonal() > 2, roster.shares, 0), state

    rule, zeros = co.reducer(co.Weighting(weigh)), jnp.zeros(1)
    for size, wanted in ((1e-30, 0.0), (2.0, 2.0), (1e25, 0.0)):
        rows = jnp.full((3, 1), size)
        assert rule.update(rows, rule.init(zeros), zeros)[0][0] == wanted


def test_the_previous_update_is_of_the_rows_size():
    """One that is not as small leaves small rows as they are: no product overflows."""
    rule, zeros = co.previous_update_filter(), jnp.zeros(2)
    state = rule.init(zeros)
    for size in (1.0, 1e-25, 1e-25):
        update, state = rule.update(
            size * jnp.array([[1.0, 2.0], [2.0, 1.0]]), state, zeros
        )
        assert jnp.all(jnp.isfinite(update))


@pytest.mark.parametrize("rule", [co.normalized_mean(), co.cosine_filter(1.0)])
def test_leaves_that_decide_for_themselves(rule):
    """Norms of leaves are no Gramian; three rows of two leaves."""
    reducer = co.per_leaf(rule)
    rng = np.random.default_rng(0)
    rows = {k: jnp.asarray(rng.normal(size=(3, 5)), jnp.float32) for k in "ab"}
    parameters = {k: jnp.zeros(5) for k in "ab"}
    update = lambda rows, reducer, parameters: reducer.update(
        rows, reducer.init(parameters), parameters
    )[0]
    together = update(rows, reducer, parameters)
    for name, leaf in rows.items():
        alone = update(leaf, rule, parameters[name])
        np.testing.assert_allclose(together[name], alone, rtol=1e-6)


def loss_of_two_layers(w, batch):
    """A row without inputs has a cotangent, one of no weight has inputs."""
    x, y, weight = batch
    out = jnp.tanh(x @ w["in"]) @ w["out"]
    return jnp.mean(weight[:, None] * (out - y) ** 2).astype(jnp.float32)


def of_one(w, example):
    return loss_of_two_layers(w, jax.tree.map(lambda leaf: leaf[None], example))


EMPTY = {
    "no inputs": (slice(3, 4), slice(0)),
    "no cotangents": (slice(0), slice(3, 4)),
    "a whole microbatch": (slice(0, 4), slice(4, 6)),
    "all": (slice(0, 5), slice(4, 8)),
}
NORMALIZED = {
    "mean": co.normalized_mean(),
    "by leaf": co.per_leaf(co.normalized_mean()),
    "transformed": co.chain(co.normalize_examples(), co.mean()),
}
OBTAINED = {
    "held": {"hold_rows": True},
    "backward": {"hold_rows": False},
    "microbatches": {"microbatch_size": 4},
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("devices", [None, 4])
@pytest.mark.parametrize("how", OBTAINED)
@pytest.mark.parametrize("rule", NORMALIZED)
def test_a_row_of_zeros_of_which_one_factor_is_none_counts(rule, how, devices, dtype):
    """It is a row of length 0, in whatever unit: the mean is over it, too."""
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    w, x, y = {"in": draw(4, 8), "out": draw(8, 4)}, draw(8, 4), draw(8, 4)
    reducer = NORMALIZED[rule]
    state, face = reducer.init(w), reducer
    if devices:
        mesh = jax.make_mesh(
            (devices,), ("d",), (AxisType.Auto,), devices=jax.devices()[:devices]
        )
        cut = {"in": PartitionSpec("d"), "out": PartitionSpec(None, "d")}
        face = co.sharded(reducer, "d", mesh=mesh, param_specs=cut)
        w = jax.device_put(w, {k: NamedSharding(mesh, cut[k]) for k in w})
        x, y = jax.device_put((x, y), NamedSharding(mesh, PartitionSpec("d")))
    step = jax.jit(co.value_and_reduced_grad(loss_of_two_layers, face, **OBTAINED[how]))
    for no_inputs, no_cotangents in EMPTY.values():
        batch = x.at[no_inputs].set(0), y, jnp.ones(8, dtype).at[no_cotangents].set(0)
        value, update, seen = step(w, batch, state=state)
        rows = jax.vmap(jax.grad(of_one), (None, 0))(w, batch)
        rows = {name: np.asarray(leaf, float) for name, leaf in rows.items()}
        squares = {k: (v**2).sum((1, 2), keepdims=True) for k, v in rows.items()}
        whole = sum(squares.values())
        # rounded to the dtype, and summed over 8 rows in another order
        most = 16 * float(jnp.finfo(dtype).eps)
        for name, leaf in rows.items():
            lengths = np.sqrt(squares[name] if rule == "by leaf" else whole)
            wanted = (leaf / np.where(lengths > 0, lengths, 1)).mean(0)
            got = np.asarray(update[name], float)
            np.testing.assert_allclose(got, wanted, rtol=0, atol=most)
        assert (int(seen.num_present), int(seen.num_nonfinite)) == (8, 0)
        assert jnp.isfinite(value)


@pytest.mark.parametrize("size", [1e-13, 1.0])
@pytest.mark.parametrize(
    "rule", [co.krum(1), co.cosine_filter(1.0), co.geometric_median()]
)
def test_nor_is_it_lost_beside_small_rows(rule, size):
    """Whose scale makes the square of its one factor overflow."""
    rng = np.random.default_rng(3)
    draw = lambda *shape: jnp.asarray(rng.normal(1, 0.5, shape), jnp.float32)
    left, right = draw(8, 1, 4).at[3].set(0), size * draw(8, 1, 3)
    row = co.OuterProduct(left, right.at[3].set(1e5), (4, 3))
    zeros = jnp.zeros((4, 3))
    start = rule.init(zeros)
    update, seen = rule.update(row, start, zeros)
    wanted, known = rule.update(row.materialize(), start, zeros)
    # sums of 12 products of 8 rows in another order
    np.testing.assert_allclose(update, wanted, rtol=0, atol=1e-5 * size)
    told = lambda state: (state.num_present, state.num_nonfinite, state.consensus_ready)
    assert told(seen) == told(known) == (8, 0, True)
