"""Microbatches on explicit mesh axes, where a loss may say how its results are cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from tests._models import assert_close

pytestmark = pytest.mark.slow

ROWS, WORDS, WIDTH = 8, 12, 16
MESH = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
RULES = {
    "fold": co.sign_consensus(quorum=0.8),
    "weighting": co.cosine_filter(1.0),
    "of norms": co.normalized_mean(),
    "about a row": co.krum(1),
    "of losses": co.keep_smallest_losses(5),
    "remembers": co.centered_clipping(1.0),
    "columns": co.median(),
    "among": co.among(co.cosine_filter(1.0), co.sign_vote()),
    "after": co.after(co.bucketing(2, jax.random.key(0)), co.trimmed_mean(1)),
}
ZOO = pytest.mark.whole_zoo
PLACES = {
    "replicated": {},
    "both": {"words": P("data"), "up": P("data", "model"), "bias": P("model")},
}
# 4 rows are shared by the devices alike, 3 cannot be.
CELLS = [
    pytest.param(*cell, marks=() if cell[0] in ("fold", "weighting") else ZOO)
    for kind in RULES
    for cell in ((kind, "both", 4), (kind, "replicated", 3))
]


def loss_of(place):
    """Dropout, a look-up that has to say where it lies, an array by keyword, aux."""

    def loss(params, tokens, key, flag, *, scale):
        look_up = params["words"].at[tokens]
        h = look_up.get(out_sharding=place) if flag else None
        each = lambda x: x[None, None]
        h = jnp.tanh(h @ params["up"] + each(params["bias"])) * each(scale)
        h = jnp.where(jax.random.bernoulli(key, 0.8, h.shape), h, 0)
        return jnp.mean(h**2), {"largest": jnp.max(h, (1, 2))}

    return loss


def given(lies=None):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / 4, jnp.float32)
    params = {"words": draw(WORDS, WIDTH), "up": draw(WIDTH, 8), "bias": draw(8)}
    tokens, scale = jnp.asarray(rng.integers(0, WORDS, (ROWS, 3))), 1 + draw(8)
    if lies is None:
        return params, tokens, scale
    put = lambda x, spec: jax.device_put(x, NamedSharding(MESH, spec))
    params = {name: put(x, lies.get(name, P())) for name, x in params.items()}
    return params, put(tokens, P("data")), put(scale, P())


def steps(rule, place, size, params, tokens, scale):
    """Two steps, one row of the second absent."""
    run = co.value_and_reduced_grad(
        loss_of(place), rule, microbatch_size=size, has_aux=True, prng_argnum=2
    )
    weights = jnp.ones(ROWS).at[2].set(0)

    @jax.jit
    def both(params, tokens, scale):
        state, outs = rule.init(params), []
        for weight in (None, weights):
            value, update, state = run(
                params,
                tokens,
                jax.random.key(1),
                True,
                state=state,
                weights=weight,
                scale=scale,
            )
            outs.append((value, update))
        return outs, state

    return both(params, tokens, scale)


@functools.cache
def on_one_device(kind):
    return steps(RULES[kind], None, None, *given())


@pytest.mark.parametrize(("kind", "place", "size"), CELLS)
def test_microbatches_give_what_one_device_gives(kind, place, size):
    rule = RULES[kind]
    outs, state = steps(rule, P(), size, *given(PLACES[place]))
    expected, same = on_one_device(kind)
    # sums of few float32 terms, in another order; distances are about another row
    jax.tree.map(lambda x, y: assert_close(x, y, 1e-5), outs, expected)
    assert bool(state.consensus_ready) == bool(same.consensus_ready)
    for name, update in outs[0][1].items():
        spec = tuple(PLACES[place].get(name, P()))
        assert tuple(update.sharding.spec)[: len(spec)] == spec


@pytest.mark.parametrize(
    "way", [{}, {"hold_rows": False}, {"microbatch_size": 4}], ids=str
)
def test_what_is_no_weight_is_an_error_where_nothing_is_traced(way):
    """Also along explicit axes, where passes run in a mesh of their own."""
    put = lambda x, *spec: jax.device_put(x, NamedSharding(MESH, P(*spec)))
    w, x = put(jnp.ones(WIDTH)), put(jnp.ones((ROWS, WIDTH)), "data")
    loss, rule = lambda w, x: jnp.mean((x @ w) ** 2), co.mean()
    run = co.value_and_reduced_grad(loss, rule, **way)
    weights = put(jnp.ones(ROWS).at[3].set(-1))
    with jax.set_mesh(MESH), pytest.raises(ValueError, match="`weights` must be"):
        run(w, x, weights=weights, state=rule.init(w))
