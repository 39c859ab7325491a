"""A loop of steps where parameters are cut: states stay as they are, updates right."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from consensus_optax import compressors

pytestmark = [pytest.mark.standard_promotion, pytest.mark.slow]  # of Adam

SPECS = {"w": P("data"), "b": P(), "v": P(None, "data")}
SHAPES = {"w": (4, 3), "b": (), "v": (3, 2)}
ADAM = optax.adam(0.1)
AFTER = {
    "adam": ADAM,
    "skip_if_empty": co.skip_if_empty(ADAM),
    "guard": optax.chain(co.guard(), ADAM),
    "cautious": co.cautious(ADAM),
    "magma": co.magma(ADAM, key=jax.random.key(0)),
    "ema_agreement": optax.chain(co.ema_agreement(), ADAM),
    "temporal_and_mask": optax.chain(co.temporal_and_mask(), ADAM),
    "median_of_three_steps": optax.chain(co.median_of_three_steps(), ADAM),
    "proximal": optax.chain(co.proximal(0.1), ADAM),
    "apply_if_finite": optax.apply_if_finite(ADAM, 2),
    "frozen": co.freeze(ADAM, {"w": False, "b": True, "v": False}),
    "multi_steps": optax.MultiSteps(ADAM, 2).gradient_transformation(),
}
PRIVATE = {"divisor": 4.0, "noise_multiplier": 0.0, "key": jax.random.key(0)}
RULES = {
    "fold": co.sign_consensus(0.6),
    "remembers": co.centered_clipping(1.0),
    "momentum": co.subspace_weighting(momentum=0.9, num_rows=4),
    "previous": co.previous_update_filter(),
    "averaged": co.ema_weights(co.normalized_mean(), 4),
    "adaptive": co.private_sum(co.quantile_norm(1.0, expected_rows=4), **PRIVATE),
    "columns": co.median(),
    "among": co.among(co.cosine_filter(1.0), co.sign_vote()),
}
TOP = compressors.top_k(0.5)
AHEAD = {
    "nothing": optax.identity(),
    "clip": co.clip_examples(1.0),
    "normalize": co.normalize_examples(),
    "scale": co.scale_examples(0.5),
    "momentum": co.row_momentum(0.5, 4),
    "error_feedback": co.error_feedback(TOP, 4),
    "top_k": co.compressed(TOP),
    "low_rank": co.compressed(compressors.low_rank(1, jax.random.key(1))),
    "sign": co.compressed(compressors.scaled_sign()),
    "natural": co.compressed(compressors.natural(jax.random.key(1))),
    "on_rows": co.on_rows(optax.clip(0.5)),
}
CASES = [("nothing", "fold", name) for name in AFTER]
CASES += [("nothing", name, "skip_if_empty") for name in RULES if name != "fold"]
CASES += [(name, "among", "guard") for name in AHEAD if name != "nothing"]


def given():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(0.3, 1, shape), jnp.float32)
    params = {name: draw(*shape) for name, shape in SHAPES.items()}
    # of the fourth of five steps nobody is there, of the third one row is not finite
    rows = {name: draw(5, 4, *shape) for name, shape in SHAPES.items()}
    rows["w"] = rows["w"].at[2, 1].set(jnp.nan)
    return params, rows, jnp.ones((5, 4)).at[3].set(0)


def trained(rule, ahead, tx):
    """Parameters and metrics after five steps, as a user scans over them."""

    def run(params, rows, weights):
        chained = optax.chain(ahead, rule, tx)

        def step(carry, now):
            params, state = carry
            updates, state = chained.update(now[0], state, params, weights=now[1])
            return (optax.apply_updates(params, updates), state), None

        start = params, chained.init(params)
        (params, state), _ = jax.lax.scan(step, start, (rows, weights))
        return params, co.metrics(state)

    return jax.jit(run)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(("ahead", "rule", "after"), CASES)
def test_a_scan_over_steps_is_that_of_one_device(ahead, rule, after, kind):
    params, rows, weights = given()
    around = AHEAD[ahead], AFTER[after]
    wanted, known = trained(RULES[rule], *around)(params, rows, weights)
    mesh = jax.make_mesh((2,), ("data",), (kind,), devices=jax.devices()[:2])
    put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    params = {name: put(x, SPECS[name]) for name, x in params.items()}
    rows = {name: put(x, P(None, "data")) for name, x in rows.items()}
    face = co.sharded(RULES[rule], "data", mesh=mesh, param_specs=SPECS)
    got, seen = trained(face, *around)(params, rows, weights)
    for name, leaf in got.items():
        # five steps of 0.1 in all, of sums of 4 rows in another order
        np.testing.assert_allclose(leaf, wanted[name], rtol=0, atol=1e-5)
        assert leaf.sharding.is_equivalent_to(params[name].sharding, leaf.ndim)
    assert seen.keys() == known.keys()
    for name in known:
        np.testing.assert_allclose(seen[name], known[name], rtol=1e-5, atol=1e-6)
