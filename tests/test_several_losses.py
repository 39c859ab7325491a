"""Two heads, a PINN, several rewards: every rule of several losses, beside jacrev."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import consensus_optax as co
from tests.zoo.multi_objective import MULTI_OBJECTIVE

pytestmark = pytest.mark.slow

K, KEY = 3, jax.random.key(3)
RULES = {
    "mgda": co.mgda(),
    "upgrad": co.upgrad(),
    "dual_projection": co.dual_projection(),
    "cagrad": co.cagrad(0.5),
    "pcgrad": co.pcgrad(KEY),
    "grad_vac": co.grad_vac(KEY, num_rows=K),
    "imtl_g": co.imtl_g(),
    "aligned_mtl": co.aligned_mtl(),
    "nash_mtl": co.nash_mtl(),
    "conflict_free": co.conflict_free(),
    "fairgrad": co.fairgrad(),
    "ema_weights": co.ema_weights(co.mgda(), num_rows=K),
    "moco": co.moco(num_rows=K),
    "random_weights": co.random_weights(KEY),
}


def test_every_rule_of_several_losses_is_here():
    assert {row.factory.__name__ for row in MULTI_OBJECTIVE} == set(RULES)


class Problem(NamedTuple):
    """Losses of (params, batch), a dict or a vector; parameters that stay factored."""

    losses: Any
    params: Any
    batch: Any
    factored: set[str]


def draw(seed, *shape):
    numbers = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(numbers / np.sqrt(shape[0] if len(shape) > 1 else 1))


def two_heads():
    """Regression and classes, and the size of the features, on layers in a scan."""
    params = {
        "in": draw(0, 24, 48),
        "layers": jnp.stack([draw(i, 48, 48) for i in (1, 2)]),
        "class": draw(3, 48, 40),
        "value": draw(4, 48, 1),
    }
    batch = draw(5, 8, 24), draw(6, 8, 1), jnp.arange(8) % 40

    def losses(params, batch):
        x, value, label = batch
        layer = lambda h, w: (h + jnp.tanh(h @ w), None)
        h = lax.scan(layer, jnp.tanh(x @ params["in"]), params["layers"])[0]
        logs = jax.nn.log_softmax(h @ params["class"])
        return {
            "value": jnp.mean((h @ params["value"] - value) ** 2),
            "class": -jnp.mean(jnp.take_along_axis(logs, label[:, None], 1)),
            "size": jnp.mean(h**2),
        }

    return Problem(losses, params, batch, {"in", "layers", "class"})


def pinn():
    """Burgers' equation: residual with second derivatives, boundary, initial value."""
    params = {str(i): draw(i, *s) for i, s in enumerate([(2, 40), (40, 40), (40, 1)])}
    batch = draw(7, 4, 2), draw(8, 4, 2), draw(9, 4, 2)

    def losses(params, batch):
        def value(point):
            h = jnp.tanh(point[None] @ params["0"])
            return (jnp.tanh(h @ params["1"]) @ params["2"])[0, 0]

        def residual(point):
            in_x = lambda point: jax.grad(value)(point)[1]
            slope, curvature = jax.grad(value)(point), jax.grad(in_x)(point)[1]
            return slope[0] + value(point) * slope[1] - 0.01 * curvature

        inside, edge, start = batch
        known = -jnp.sin(jnp.pi * start[:, 1])
        return {
            "residual": jnp.mean(jax.vmap(residual)(inside) ** 2),
            "boundary": jnp.mean(jax.vmap(value)(edge) ** 2),
            "initial": jnp.mean((jax.vmap(value)(start) - known) ** 2),
        }

    return Problem(losses, params, batch, set())  # more terms than a side of a kernel


def rewards():
    """Policy gradients of three rewards over the same tokens, within a group."""
    params = {"embed": draw(0, 20, 48), "up": draw(1, 48, 64), "out": draw(2, 64, 20)}
    tokens = jnp.asarray(np.random.default_rng(3).integers(0, 20, (4, 5)))
    batch = tokens, draw(4, 4, K)

    def losses(params, batch):
        tokens, scores = batch
        h = jnp.tanh(params["embed"][tokens[:, :-1]] @ params["up"])
        logs = jax.nn.log_softmax(h @ params["out"])
        chosen = jnp.take_along_axis(logs, tokens[:, 1:, None], -1)[..., 0]
        advantages = (scores - scores.mean(0, keepdims=True)) / scores.std(
            0, keepdims=True
        )
        return -jnp.einsum("bt,bk->k", chosen, advantages) / chosen.size

    return Problem(losses, params, batch, {"embed", "up", "out"})


PROBLEMS = {make.__name__: make for make in (two_heads, pinn, rewards)}


def by_hand(losses, params, batch):
    """Rows as one writes them without this library, in the order of the keys."""

    def vector(params):
        values = losses(params, batch)
        several = isinstance(values, dict)
        return jnp.stack(jax.tree.leaves(values)) if several else values

    return jax.jacrev(vector)(params)


def assert_close(x, y, tolerance):
    x, y = np.asarray(x), np.asarray(y)
    assert (x.shape, x.dtype) == (y.shape, y.dtype)
    np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * np.abs(y).max())


def compare(name, dtype, tolerance, rules):
    """Rows to the tolerance, and updates of rules on them."""
    problem = PROBLEMS[name]()
    cast = lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
    params, batch = jax.tree.map(cast, (problem.params, problem.batch))
    factored = set()

    @jax.jit
    def run(params, batch):
        rows = co.task_grad(problem.losses)(params, batch)
        factored.update(n for n, leaf in rows.items() if co.is_outer_product(leaf))
        dense = by_hand(problem.losses, params, batch)
        reduce = lambda rule, rows: rule.update(rows, rule.init(params), params)[0]
        updates = {
            name: (reduce(rule, rows), reduce(rule, dense))
            for name, rule in rules.items()
        }
        return co.materialize(rows), dense, updates

    rows, dense, updates = run(params, batch)
    assert factored == problem.factored
    jax.tree.map(functools.partial(assert_close, tolerance=tolerance), rows, dense)
    for rule, (ours, wanted) in updates.items():
        scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(wanted))
        for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
            # solvers go on until a residual of eps, and divide by lengths of rows
            gap = 1e3 * tolerance * scale
            np.testing.assert_allclose(x, y, rtol=0, atol=gap, err_msg=rule)


FEW = {name: RULES[name] for name in ("mgda", "cagrad")}


@pytest.mark.parametrize("name", PROBLEMS)
def test_rows_and_updates_are_those_of_jacrev_by_hand(name):
    compare(name, jnp.float32, 1e-5, FEW)


@pytest.mark.whole_zoo
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_rule_in_float64(name):
    with jax.enable_x64():
        compare(name, jnp.float64, 1e-12, RULES)


def test_training_by_several_losses_lowers_all_of_them():
    problem = two_heads()
    params = jax.tree.map(jnp.float32, problem.params)
    batch = jax.tree.map(
        lambda x: x.astype(jnp.float32) if x.dtype.kind == "f" else x, problem.batch
    )
    rule = co.upgrad()

    @jax.jit
    def train(params):
        def step(params, _):
            values, rows = co.task_value_and_grad(problem.losses)(params, batch)
            update, _ = rule.update(rows, rule.init(params), params)
            moved = jax.tree.map(lambda p, u: p - 0.02 * u, params, update)
            return moved, jnp.stack(jax.tree.leaves(values))

        return lax.scan(step, params, length=40)[1]

    values = np.asarray(train(params))
    assert (np.diff(values, axis=0) < 0).all()  # UPGrad opposes no loss
