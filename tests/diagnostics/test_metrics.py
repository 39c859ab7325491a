"""One flat dict of numbers, whatever is around the reducers."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import consensus_optax as co
from consensus_optax._rules.kinds import Fold
from tests.zoo import ZOO

pytestmark = pytest.mark.standard_promotion  # optax mixes its counts with floats

PARAMS = {"a": jnp.ones((3, 2)), "b": jnp.zeros(2)}
OF_A_REDUCER = {
    "consensus_ratio",
    "ready",
    "accepted",
    "num_present",
    "num_nonfinite",
    "steps_without_consensus",
}
# Row 1 is not finite, row 3 is absent, the others are equal.
ROWS = {
    "a": jnp.ones((4, 3, 2)).at[1, 0, 0].set(jnp.nan).at[3].set(-5),
    "b": jnp.full((4, 2), 2.0),
}
WEIGHTS = jnp.array([1.0, 1.0, 2.0, 0.0])


def after_a_step(tx, rows=ROWS, weights=WEIGHTS, **extra):
    _, state = tx.update(rows, tx.init(PARAMS), PARAMS, weights=weights, **extra)
    return state


def opposed():
    return jax.tree.map(lambda p: jnp.stack([p + 1, -p - 1]), PARAMS)


NOW = {"sign_consensus()", "mean()", "median()", "per_leaf(cosine_filter())"}
MARKS = {True: (), False: pytest.mark.whole_zoo}
EVERY_RULE = [
    pytest.param(row, id=str(row), marks=MARKS[str(row) in NOW]) for row in ZOO
]


@pytest.mark.parametrize("row", EVERY_RULE)
def test_every_rule(row):
    rule = row.make(4)
    step = jax.jit(lambda rows: co.metrics(after_a_step(rule, rows)))
    found = step(ROWS)
    assert set(found) >= OF_A_REDUCER
    assert all(value.shape == () for value in found.values())
    assert found["num_present"] == 2
    assert found["num_nonfinite"] == 1
    assert 0 <= found["accepted"] <= found["num_present"]
    assert 0 <= found["consensus_ratio"] <= 1
    assert found["ready"] == (found["consensus_ratio"] > 0)
    assert found["steps_without_consensus"] == (found["consensus_ratio"] < 0.01)
    if isinstance(rule.rule, Fold) or rule.rule == co.mean().rule:
        assert found["accepted"] == 2


ACCEPTED = {
    "mean": (co.mean(), 4, 1.0),
    "krum": (co.krum(0, num_selected=1), 1, 1.0),
    "multi-krum": (co.krum(0, num_selected=2), 2, 1.0),
    "trusted, as mixed": (
        co.after(co.bucketing(2, jax.random.key(0)), co.mean()),
        4,
        1,
    ),
    "among": (co.among(co.krum(0, num_selected=2), co.mean()), 2, 1.0),
    "among, disagreeing": (
        co.among(co.krum(0, num_selected=1), co.sign_consensus()),
        1,
        1.0,
    ),
    "nobody": (co.cosine_filter(0.0), 0, 0.0),
    "half of the leaves": (co.per_leaf(co.cosine_filter(0.5)), 4, 6 / 8),
    "half of the coordinates": (co.sign_consensus(), 4, 0.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ACCEPTED)
def test_who_is_accepted_and_what_moves(name):
    rule, accepted, ratio = ACCEPTED[name]
    near = jnp.array([1.0, 1.1, 1.25, 1.6])
    sizes = {"half of the leaves": (near, near * jnp.array([1, -1, -1, -1.0]))}
    if name == "nobody":  # a right angle
        rows = {"a": jnp.zeros((2, 3, 2)), "b": jnp.eye(2)}
    elif name == "half of the coordinates":
        signs = jnp.array([[1, 1], [1, 1], [1, -1], [1, -1.0]])
        rows = {"a": jnp.tile(signs[:, None], (1, 3, 1)), "b": signs}
    else:
        a, b = sizes.get(name, (near, near))
        rows = {
            "a": jnp.ones((4, 3, 2)) * a[:, None, None],
            "b": jnp.outer(b, jnp.ones(2)),
        }
    found = co.metrics(after_a_step(rule, rows, None))
    assert found["accepted"] == accepted
    np.testing.assert_allclose(found["consensus_ratio"], ratio, rtol=1e-6)


def a_sgd(reducer):
    return optax.chain(reducer, optax.sgd(1.0))


WRAPPED = {
    "chain": (a_sgd(co.mean()), [""]),
    "guard": (optax.chain(co.median(), optax.adam(1e-3), co.guard()), [""]),
    "freeze": (co.freeze(a_sgd(co.mean()), {"a": True, "b": False}), [""]),
    "partition": (
        optax.partition(
            {"body": a_sgd(co.mean()), "head": a_sgd(co.sign_consensus())},
            {"a": "body", "b": "head"},
        ),
        ["body/", "head/"],
    ),
    "masked": (
        optax.chain(
            optax.masked(co.mean(), {"a": True, "b": False}),
            optax.masked(co.median(), {"a": False, "b": True}),
        ),
        ["0/", "1/"],
    ),
    "inject_hyperparams": (
        optax.inject_hyperparams(lambda distance: a_sgd(co.cosine_filter(distance)))(
            optax.linear_schedule(1.0, 0.5, 10)
        ),
        [""],
    ),
    "MultiSteps": (
        optax.chain(
            co.mean(), optax.MultiSteps(optax.adam(1), 2).gradient_transformation()
        ),
        [""],
    ),
    "apply_if_finite": (
        optax.chain(co.mean(), optax.apply_if_finite(optax.adam(1e-3), 3)),
        [""],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPED)
def test_whatever_is_around(name):
    tx, prefixes = WRAPPED[name]
    found = co.metrics(after_a_step(tx))
    assert set(found) >= {prefix + word for prefix in prefixes for word in OF_A_REDUCER}
    assert not {word.rsplit("/", 1)[-1] for word in found} & {"count", "mini_step"}
    for prefix in prefixes:
        assert found[f"{prefix}ready"]
    compiled = jax.jit(co.metrics)(after_a_step(tx))
    jax.tree.map(np.testing.assert_array_equal, dict(compiled), found)


def test_a_mesh():
    mesh = jax.make_mesh((2,), ("data",))
    alone, shared = (
        co.sign_consensus(),
        co.sharded(co.sign_consensus(), "data", mesh=mesh),
    )
    found, wanted = (co.metrics(after_a_step(tx)) for tx in (shared, alone))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.slow
def test_what_stands_before_and_after():
    tx = optax.chain(
        co.probe(0.0),
        co.clip_examples(1.0),
        co.sign_consensus(),
        co.temporal_and_mask(),
        co.ema_agreement(),
        co.skip_if_empty(co.cautious(optax.adam(1e-3))),
    )
    found = co.metrics(after_a_step(tx, opposed(), None))
    assert found["skipped"] == 1
    assert (
        found["2/consensus_ratio"] == 0
    )  # that of the mask over time has the name too
    assert found["3/consensus_ratio"] == 0
    assert found["scaled_share"] == 1
    assert {"kept", "suppressed", "coherence", "noise_scale"} <= set(found)
    np.testing.assert_allclose(found["cosine_quantiles/50"], -1, rtol=1e-6)
    assert {"leaf_coherence/a", "leaf_coherence/b"} <= set(found)
    assert not any("step" in name for name in found if "without" not in name)


@pytest.mark.slow
def test_what_the_rule_says_of_itself():
    mgda = co.metrics(after_a_step(co.mgda()))
    assert {"residual", "converged"} <= set(mgda)
    filtered = co.metrics(after_a_step(co.cosine_filter(1.0)))
    assert {"cosine_mean", "cosine_min"} <= set(filtered)
    assert (
        filtered["accepted"] == 2
    )  # the first among them, which the filter leaves out
    both = co.metrics(after_a_step(co.among(co.cosine_filter(1.0), co.mgda())))
    assert {"cosine_mean", "residual"} <= set(both)
    remembers = co.metrics(after_a_step(co.centered_clipping(1.0)))
    assert set(remembers) - OF_A_REDUCER == {"clipped_share"}  # no previous update
    weigh = lambda _, roster, state: (roster.shares, {"mine": state["mine"] + 1})
    init = lambda params, dtype: {"mine": jnp.zeros((), dtype)}
    own = co.reducer(co.Weighting(weigh, init, reads="nothing"))
    assert co.metrics(after_a_step(own))["mine"] == 1


def test_three_of_a_kind_are_told_apart():
    part = optax.partition(
        {"x": co.per_leaf(co.mgda()), "y": co.mgda()}, {"a": "x", "b": "y"}
    )
    found = co.metrics(optax.chain(part, co.temporal_and_mask()).init(PARAMS))
    names = {name for name in found if name.endswith("consensus_ratio")}
    assert names == {"0/x/consensus_ratio", "0/y/consensus_ratio", "1/consensus_ratio"}
    both = co.among(co.geometric_median(), co.mgda()).init(PARAMS)
    names = {name for name in co.metrics(both) if name.endswith("residual")}
    assert names == {"selector_state/residual", "rule_state/residual"}


def test_others_have_none_and_many_models_are_mapped():
    assert co.metrics(optax.adam(1e-3).init(PARAMS)) == {}
    assert co.metrics(()) == {}
    many = jax.vmap(lambda _: co.mean().init(PARAMS))(jnp.arange(3))
    with pytest.raises(ValueError, match=r"axes \(3,\).*`jax.vmap\(co.metrics\)"):
        co.metrics(many)
    assert jax.vmap(co.metrics)(many)["ready"].shape == (3,)


def test_flax_states():
    tx = a_sgd(co.mean())
    linen = TrainState.create(apply_fn=None, params=PARAMS, tx=tx)
    linen = linen.apply_gradients(grads=jax.tree.map(lambda p: p[None], PARAMS))
    assert co.metrics(linen)["num_present"] == 1
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(
        model, jax.tree.map(lambda p: p[None], nnx.state(model, nnx.Param))
    )
    found = co.metrics(optimizer.opt_state)
    assert found["num_present"] == 1
    assert set(found) == OF_A_REDUCER


def test_steps_without_consensus_are_counted_and_warned_of():
    rule = co.sign_consensus()
    step = jax.jit(lambda rows, state: rule.update(rows, state, PARAMS)[1])
    state = rule.init(PARAMS)
    for i in range(3):
        state = step(opposed(), state)
        assert state.steps_without_consensus == i + 1
    jax.block_until_ready(state)
    with pytest.warns(UserWarning, match="steps_without_consensus` is 3: .*fewer rows"):
        co.metrics(state, warn_after=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        co.metrics(state, warn_after=4)
        co.metrics(state, warn_after=None)
        jax.jit(lambda state: co.metrics(state, warn_after=1))(state)
    agreed = jax.tree.map(lambda x: jnp.abs(x) + 1, opposed())
    state = step(agreed, state)
    assert state.steps_without_consensus == 0
    with pytest.raises(ValueError, match="`warn_after`"):
        co.metrics(state, warn_after=0)


def test_a_writer_of_scalars_takes_them():
    written = {}

    class Writer:
        def add_scalar(self, name, value, step):
            written[name, step] = float(np.asarray(value))

    writer = Writer()
    for i in range(2):
        for name, value in co.metrics(after_a_step(a_sgd(co.mgda()))).items():
            writer.add_scalar(f"consensus/{name}", value, i)
    assert written["consensus/consensus_ratio", 1] == 1
    assert len(written) == 2 * len(OF_A_REDUCER | {"residual", "converged"})
