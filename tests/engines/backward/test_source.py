"""Rows of models, reduced inside of their backward pass: what rows in memory give."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import consensus_optax as co
from consensus_optax._gradients import claims
from consensus_optax._rows import gramians
from consensus_optax._rows.statistics import WEIGHTED_SUM
from tests._models import MODELS, ROWS, square
from tests._recurrent_models import RECURRENT
from tests._scanned_models import SCANNED

pytestmark = pytest.mark.slow

# Of every way to look at rows one: a fold, norms, inner products, those of rows less
# one of them, the previous update, one decision for every leaf.
RULES = {
    "fold": co.sign_consensus(0.7),
    "norms": co.normalized_mean(),
    "gramian": co.cosine_filter(0.97),
    "about": co.geometric_median(),
    "previous": co.centered_clipping(0.1),
    "per leaf": co.per_leaf(co.normalized_mean()),
}
EVERY = {**SCANNED, **RECURRENT, **MODELS}
NOW = ("transformer", "checkpointed", "groups_of_layers", "used_twice", "convolutions")


def step(model, rule, held, loss=None, **options):
    of_batch = co.value_and_reduced_grad(
        loss or model.loss, rule, hold_rows=held, **options
    )
    return jax.jit(
        lambda params, batch, state, weights: of_batch(
            params, batch, state=state, weights=weights
        )
    )


def assert_same(got, wanted, rtol):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_allclose(
            x, y, rtol=0, atol=rtol * np.abs(y).max(initial=1e-6)
        )


def cases():
    """All rules of some models; of every other model two, by turns."""
    names = [*SCANNED, *(x for x in EVERY if x not in SCANNED)]
    for place, name in enumerate(names):
        for index, kind in enumerate(RULES):
            now = name in NOW and place % len(RULES) == index
            if name not in NOW and (place - index) % 3:
                continue
            marks = () if now else pytest.mark.whole_zoo
            yield pytest.param(name, kind, id=f"{name}, {kind}", marks=marks)


@pytest.mark.parametrize(("name", "kind"), [*cases()])
def test_models(name, kind, monkeypatch):
    """Two steps; every array that may be is reduced where it is, however small."""
    monkeypatch.setattr(claims, "SMALL", 0)
    model, rule = EVERY[name](), RULES[kind]
    weights = jnp.arange(1.0, ROWS + 1).at[1].set(0)
    found = []
    for held in (True, False):
        state = rule.init(model.params)
        run = step(model, rule, held)
        for _ in range(2):
            value, update, state = run(model.params, model.batch, state, weights)
        found.append((value, update, state.num_present))
    # sums of a model's rows in another order, as in test_value_and_reduced_grad.py
    assert_same(*found, rtol=3e-5)


def tiny(dtype=jnp.float32):
    """Layers in a scan, of which the rows are larger than their factors."""
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(0.3 * random.normal(size=shape), jnp.float32)
    params = {"in": draw(3, 8), "layers": draw(2, 8, 8)}

    def loss(p, x):
        p = jax.tree.map(lambda w: w.astype(dtype), p)
        layer = lambda x, w: (jnp.tanh(x @ w), None)
        x = lax.scan(layer, x.astype(dtype) @ p["in"], p["layers"])[0]
        return square(x).astype(jnp.float32)

    return loss, params, draw(5, 6, 3) + 1


@pytest.mark.parametrize("kind", ["fold", "sum", "norms", "gramian"])
@pytest.mark.parametrize("bad", [(), (0,), (1, 4), (0, 1, 2, 3, 4)], ids=str)
def test_rows_that_cannot_count(kind, bad):
    """Non-finite, absent, and a weight that is none and is found out when it is run."""
    loss, params, x = tiny()
    x = x.at[list(bad), 0, 0].set(jnp.nan) if bad else x
    weights = jnp.array([1.0, 2.0, 0.0, -1.0, 3.0])
    # every weight counts in a sum
    total = co.Fold((WEIGHTED_SUM,), lambda merged, roster: merged[0])
    rule = co.reducer(total) if kind == "sum" else RULES[kind]
    held, inside = (
        co.value_and_reduced_grad(loss, rule, hold_rows=held) for held in (True, False)
    )
    both = [
        jax.jit(
            lambda weights, run=run: run(
                params, x, state=rule.init(params), weights=weights
            )
        )(weights)
        for run in (held, inside)
    ]
    (value, update, state), (wanted, expected, known) = both[1], both[0]
    assert_same(update, expected, rtol=1e-5)
    np.testing.assert_array_equal(value, wanted)
    for name in ("num_present", "num_nonfinite", "consensus_ready"):
        assert getattr(state, name) == getattr(known, name), name
    assert int(state.num_nonfinite) == len({*bad, 3} - {2})


def test_a_row_that_overflows_in_one_layer_is_out_everywhere():
    """Of finite factors; all other leaves are finite."""
    _, params, x = tiny()
    size = jnp.where(jnp.arange(5) == 2, 1e25, 1.0)

    def linear(p, batch):  # of the layers: its factors are x times size, and size
        x, size = lax.stop_gradient(batch[0] @ p["in"]), batch[1][0]
        y = lax.scan(lambda x, w: (x @ w, None), size * x[0], p["layers"])[0]
        return jnp.sum(size * lax.stop_gradient(x[0]) * y) + square(batch[0] @ p["in"])

    rule = co.sign_consensus(0.6)
    found = []
    for held in (True, False):
        run = co.value_and_reduced_grad(linear, rule, hold_rows=held)
        found.append(run(params, (x, size), state=rule.init(params)))
    assert int(found[1][2].num_nonfinite) == int(found[0][2].num_nonfinite) == 1
    assert_same(found[1][1], found[0][1], rtol=1e-5)


def test_sums_are_in_float32_whatever_the_loss_computes_in():
    """Of 300 equal rows in bfloat16 the mean is the row; sums would stop at 256."""
    loss, params, x = tiny(jnp.bfloat16)
    rule = co.mean()
    run = jax.jit(
        lambda x: co.value_and_reduced_grad(loss, rule, hold_rows=False)(
            params, x, state=rule.init(params)
        )
    )
    many, one = (run(jnp.tile(x[:1], (count, 1, 1)))[1] for count in (300, 1))
    # two programs may round the model's own numbers to bfloat16 in other places
    assert_same(many, one, rtol=2e-3)


def decoder(depth=3, width=32, length=48, rows=6):
    """As language models are, with T above d / 2: rows are smaller than factors."""
    shapes = {"qkv": (3, 2, width // 2), "out": (width,), "up": (4 * width,)}
    params = {
        name: jnp.ones((depth, width, *shape), jnp.float32)
        for name, shape in shapes.items()
    }
    params["down"] = jnp.ones((depth, 4 * width, width))

    @jax.checkpoint
    def block(x, p):
        q, k, v = jnp.moveaxis(jnp.einsum("btd,dchk->btchk", x, p["qkv"]), 2, 0)
        mixed = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k), -1)
        mixed = jnp.einsum("bhts,bshk->bthk", mixed, v).reshape(x.shape)
        x = x + mixed @ p["out"]
        return x + jax.nn.gelu(x @ p["up"]) @ p["down"], None

    def loss(params, x):
        return square(lax.scan(block, x, params)[0])

    return loss, params, jnp.ones((rows, length, width))


@pytest.mark.parametrize("kind", ["fold", "norms", "gramian", "about"])
def test_no_rows_of_a_layer_are_held(kind, monkeypatch):
    """In the compiled program no array has rows of matrices like any parameter."""
    monkeypatch.setattr(gramians, "_ENTRIES", 2**11)  # of a block, for small layers
    monkeypatch.setattr(gramians, "_ENTRIES_ELSEWHERE", 2**11)
    loss, params, batch = decoder()
    rule = RULES[kind]
    sides = [leaf.shape[1:] for leaf in params.values()]

    def arrays_of_rows(held):
        run = co.value_and_reduced_grad(loss, rule, hold_rows=held)
        lowered = jax.jit(run).lower(params, batch, state=rule.init(params))
        shapes = re.findall(r"f32\[([\d,]+)\]", lowered.compile().as_text())
        return {shape for shape in shapes if _is_rows(shape, len(batch), sides)}

    assert not arrays_of_rows(held=False)
    if kind == "fold":
        assert arrays_of_rows(held=True)  # so there would be something to find


def _is_rows(shape, rows, sides):
    """Whether an array has an axis of rows, and those of one parameter, as matrices."""
    axes = [int(side) for side in shape.split(",") if side != "1"]
    matrices = [(x[0], int(np.prod(x[1:]))) for x in sides]
    matrices += [(int(np.prod(x[:-1])), x[-1]) for x in sides]
    return any(axes[-2:] in ([m, n], [n, m]) and rows in axes[:-2] for m, n in matrices)
