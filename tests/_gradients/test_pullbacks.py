"""Backward passes of several losses are exact for any model, and heads are apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import consensus_optax as co
from tests._models import MODELS, array, assert_close
from tests._recurrent_models import RECURRENT
from tests._scanned_models import SCANNED

pytestmark = [pytest.mark.standard_promotion, pytest.mark.slow]

EVERY = {
    f"{kind} {name}": make
    for kind, models in (("", MODELS), ("scanned", SCANNED), ("recurrent", RECURRENT))
    for name, make in models.items()
}
NOW = {" mlp", " wrapped", "scanned layers", "recurrent lstm"}
SLOW = [
    pytest.param(name, marks=() if name in NOW else pytest.mark.slow) for name in EVERY
]


def three(loss):
    """Losses that share all of one pass, that share nothing, and that share a part."""

    def losses(params, batch):
        x = loss(params, batch)
        y = loss(params, jax.tree.map(lambda x: x[::-1][: (len(x) + 1) // 2], batch))
        return {"both": x + jnp.sin(y), "first": jnp.tanh(x), "second": y * y}

    return losses


def tolerance(name):
    """Float32 rounding of some tens of operations in turn, in another order.

    Of bfloat16 products some 2**-8 each.
    """
    return 1e-2 if name == " mixed_precision" else 1e-5


def stacked(jacobian):
    """Rows of a dict of gradients, in the order of its keys."""
    return jax.tree.map(lambda *x: jnp.stack(x), *map(jacobian.get, sorted(jacobian)))


def assert_same(rows, wanted, tolerance):
    pairs = zip(jax.tree.leaves(rows), jax.tree.leaves(wanted), strict=True)
    for x, y in pairs:
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        assert_close(x, y, tolerance)


@pytest.mark.parametrize("name", SLOW)
def test_rows_are_those_of_jacrev(name):
    model = EVERY[name]()
    losses = three(model.loss)

    @jax.jit
    def both(params, batch):
        given = co.task_grad(losses)(params, batch)
        return co.materialize(given), stacked(jax.jacrev(losses)(params, batch))

    assert_same(*both(model.params, model.batch), tolerance(name))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == " cnn" else pytest.mark.slow)
        for name in EVERY
    ],
)
def test_rows_of_groups_are_those_of_jacrev_of_each(name):
    model = EVERY[name]()
    losses = three(model.loss)
    groups = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), model.batch)

    @jax.jit
    def both(params, batch):
        given = co.task_grad(losses, group_size=2)(params, batch)
        own = lambda params, group: stacked(jax.jacrev(losses)(params, group))
        wanted = jax.vmap(own, (None, 0))(params, groups)
        joined = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), wanted)
        return co.materialize(given), joined

    assert_same(*both(model.params, model.batch), tolerance(name))


WIDE = {
    "trunk": array(0, 64, 48),
    "trunk 2": array(1, 48, 48),
    "head a": array(2, 48, 40),
    "head b": array(3, 48, 40),
    "head c": array(4, 48, 1),
}
X = array(5, 8, 64)


def features(params, x):
    return jnp.tanh(jnp.tanh(x @ params["trunk"]) @ params["trunk 2"])


def heads(params, x, kind=dict):
    """Two wide heads and a narrow one on one trunk."""
    h = features(params, x)
    losses = {
        name: jnp.mean((h @ params[f"head {name}"]) ** power)
        for name, power in (("a", 2), ("b", 4), ("c", 2))
    }
    return losses if kind is dict else jnp.stack(list(losses.values()))


def kinds(rows):
    of = lambda leaf: ("shared" if leaf.is_shared else "own", leaf.left.shape[1])
    return {
        name: of(leaf) if co.is_outer_product(leaf) else "array"
        for name, leaf in rows.items()
    }


@pytest.mark.parametrize("kind", [dict, jnp.stack])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jitted"])
def test_what_losses_share_has_one_left_factor(kind, wrap):
    """And heads have rows of their own among zeros."""
    losses = wrap(lambda params, x: heads(params, x, kind))
    rows = co.task_grad(losses)(WIDE, X)
    assert kinds(rows) == {
        "trunk": ("shared", 8),
        "trunk 2": ("shared", 8),
        "head a": ("own", 8),
        "head b": ("own", 8),
        "head c": "array",
    }
    wanted = jax.jacrev(lambda p, x: heads(p, x, jnp.stack))(WIDE, X)
    assert_same(co.materialize(rows), wanted, 2e-6)
    for task, name in enumerate(("head a", "head b", "head c")):
        other = np.delete(np.asarray(co.materialize(rows[name])), task, 0)
        assert not other.any()


@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint], ids=["", "again"])
def test_layers_in_a_scan_have_one_left_factor(wrap):
    """Also where they are computed anew, beside what depends on the losses."""
    params = {"layers": jnp.stack([array(i, 48, 48) for i in range(3)])}
    layer = wrap(lambda h, w: (jnp.tanh(jnp.sin(h) @ w), None))

    def losses(params, x):
        h = lax.scan(layer, x, params["layers"])[0]
        return {"a": h.mean(), "b": (h * h).mean(), "c": (h**3).mean()}

    x = array(9, 8, 48)
    rows = co.task_grad(losses)(params, x)
    assert rows["layers"].is_shared
    assert rows["layers"].num_layers == 3
    wanted = stacked(jax.jacrev(losses)(params, x))
    assert_same(co.materialize(rows), wanted, 2e-6)


def test_uses_of_one_parameter_in_turns():
    """Its gradient adds up parts of one loss, of another, of the first one again."""

    def losses(params, x):
        uses = [jnp.tanh((i + x) @ params["w"]).mean() for i in range(5)]
        return {"a": uses[0] + uses[2] * uses[4], "b": uses[1] + uses[3]}

    params, x = {"w": array(0, 16, 16)}, array(1, 4, 16)
    rows = co.task_grad(losses)(params, x)
    wanted = stacked(jax.jacrev(losses)(params, x))
    assert_same(co.materialize(rows), wanted, 2e-6)


def flops(function, *args):
    cost = jax.jit(function).lower(*args).compile().cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost)["flops"]


def test_networks_of_their_own_cost_what_their_gradients_cost():
    """Three losses of one network on three batches, as a PINN has: no pass is in vain.

    Factors are smaller than rows, so that rows are not even multiplied out.
    """
    batches = [array(seed, 64, 64) for seed in (6, 7, 8)]

    def losses(params):
        return {str(i): features(params, x).mean() for i, x in enumerate(batches)}

    plain = lambda params: jax.grad(lambda p: sum(losses(p).values()))(params)
    rows = lambda params: co.materialize(co.task_grad(losses)(params))
    base = flops(plain, WIDE)
    assert flops(rows, WIDE) < 1.1 * base
    assert flops(jax.jacrev(losses), WIDE) > 1.5 * base  # what the test is about


def test_the_forward_pass_runs_once():
    """As many sines as without gradients, and none for each loss."""

    def losses(params, x):
        h = jnp.sin(x @ params["trunk"])
        return jnp.stack([h.mean(), (h * h).mean(), (h**3).mean()])

    def step(params, x):
        rule = co.mean()
        rows = co.task_grad(losses)(params, x)
        return rule.update(rows, rule.init(params), params)[0]

    assert str(jax.make_jaxpr(step)(WIDE, X)).count("= sin ") == 1
    program = jax.jit(step).lower(WIDE, X).compile().as_text()
    assert "f32[3,8,64]" not in program  # no input for each loss
    assert "f32[3,64,48]" not in program  # and no kernel


def test_a_loss_that_is_not_finite_spoils_its_own_row():
    """Where it has a head of its own; ``jacrev`` spoils them all."""
    spoilt = {**WIDE, "head b": WIDE["head b"].at[0].set(jnp.inf)}
    for kind in (dict, jnp.stack):
        losses = lambda params, x, kind=kind: heads(params, x, kind)
        rows = jax.jit(co.task_grad(losses))(spoilt, X)
        dense = co.materialize(rows)
        sound = co.materialize(co.task_grad(losses)(WIDE, X))
        for name, leaf in dense.items():
            assert_close(leaf[0], sound[name][0], 2e-6)
            assert_close(leaf[2], sound[name][2], 2e-6)
        assert not np.isfinite(dense["trunk"][1]).all()
        rule = co.mean()
        update, state = rule.update(rows, rule.init(WIDE), WIDE)
        assert int(state.num_nonfinite) == 1
        assert_close(update["trunk"], sound["trunk"][jnp.array([0, 2])].mean(0), 2e-6)
    nan = jax.jacrev(lambda p, x: heads(p, x, jnp.stack))(spoilt, X)["trunk"]
    assert np.isnan(nan).any((1, 2)).all()


@jax.custom_vjp
def gate(x):
    return x


# What is handed back depends on the cotangent otherwise than by a factor.
gate.defvjp(lambda x: (x, None), lambda _, ct: (jnp.clip(ct, -0.01, 0.01),))


def test_gradients_that_are_not_linear_are_those_of_each_loss():
    def losses(params, x):
        h = gate(features(params, x))
        return {"a": h.sum(), "b": -3 * h.sum(), "c": params["head c"].sum()}

    rows = co.materialize(co.task_grad(losses)(WIDE, X))
    for task, name in enumerate("abc"):
        one = jax.grad(lambda params, x, name=name: losses(params, x)[name])(WIDE, X)
        own = jax.tree.map(lambda leaf, task=task: leaf[task], rows)
        assert_same(own, one, 2e-6)


def test_checkpoints_are_recomputed_once():
    """A trunk under ``jax.checkpoint`` runs twice, not once more for every loss."""

    def losses(params, x):
        h = jax.checkpoint(lambda p, x: jnp.sin(jnp.sin(x @ p) @ p.T))(
            params["trunk"], x
        )
        return {"a": h.mean(), "b": (h * h).mean(), "c": (h**3).mean()}

    rows = co.task_grad(losses)(WIDE, X)
    wanted = stacked(jax.jacrev(losses)(WIDE, X))
    assert_same(co.materialize(rows), wanted, 2e-6)
    program = str(jax.make_jaxpr(co.task_grad(losses))(WIDE, X))
    sines = [line for line in program.splitlines() if "= sin " in line]
    assert len(sines) == 3  # of the outer one the gradient needs the cosine alone
    assert not any("f32[3," in line for line in sines)
