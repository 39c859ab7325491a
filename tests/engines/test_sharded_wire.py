"""Messages of compressors on the wire: one law, and bytes read off the program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from consensus_optax import compressors
from tests._selected import in_ci
from tests.engines.test_sharded import mesh_of
from tests.zoo.own import heavy_ball

N, L = 4, 2
KEY = jax.random.key(5)
CODES = {
    "int8": compressors.stochastic_quantization(8, KEY),
    "int4": compressors.stochastic_quantization(4, KEY),
    "sign": compressors.scaled_sign(),
    "natural": compressors.natural(KEY),
    "top_k": compressors.top_k(0.3),
    "random_k": compressors.random_k(0.3, KEY),
    "pieces": compressors.bucketed(compressors.stochastic_quantization(2, KEY), size=3),
    "low_rank": compressors.low_rank(1, KEY),
}
KINDS = {
    "fold": co.sign_consensus,
    "fold of signs": co.sign_vote,
    "columns": co.median,
    "mean": co.mean,
    "norms": co.normalized_mean,
    "gramian": lambda: co.cosine_filter(1.2),
    "affine": lambda: co.krum(1),
    "memory": heavy_ball,
    "among": lambda: co.among(co.cosine_filter(1.2), co.sign_consensus()),
    "mixing": lambda: co.after(co.nearest_neighbor_mixing(1), co.median()),
    "noise": lambda: co.private_sum(1.0, divisor=4, noise_multiplier=0.1, key=KEY),
    "by leaf": lambda: co.per_leaf(co.subspace_weighting()),
}
PARAMS = {"a": jnp.zeros((7, 5)), "b": jnp.zeros(()), "c": jnp.zeros(13)}


def rows_of(num_rows=N * L):
    rng = np.random.default_rng(1)
    base = {name: rng.normal(size=x.shape) for name, x in PARAMS.items()}
    noisy = lambda x: x + 0.3 * rng.normal(size=(num_rows, *x.shape))
    return jax.tree.map(lambda x: jnp.asarray(noisy(x), jnp.float32), base)


def on_mesh(reducer, steps, weights, params=PARAMS, **options):
    across = co.sharded(reducer, "data", **options)

    def run(steps, weights):
        def step(state, rows):
            update, state = across.update(rows, state, params, weights=weights)
            return state, update

        return jax.lax.scan(step, reducer.init(params), steps)

    specs = P(None, "data"), P("data")
    mapped = jax.shard_map(run, mesh=mesh_of(N), in_specs=specs, out_specs=P())
    return jax.jit(mapped)(steps, weights)


def in_memory(reducer, code, steps, weights):
    whole = code if code.factor else compressors.bucketed(code, count=N)
    tx = optax.chain(co.compressed(whole), reducer)

    def step(state, rows):
        update, state = tx.update(rows, state, PARAMS, weights=weights)
        return state, update

    (_, state), updates = jax.jit(
        lambda steps: jax.lax.scan(step, tx.init(PARAMS), steps)
    )(steps)
    return state, updates


def cases():
    """One in the default run; in CI every code, and every kind of rule."""
    yield "sign", "columns"
    for code in CODES:
        kind = "columns" if code == "low_rank" else "gramian"
        yield pytest.param(code, kind, marks=in_ci)
    for kind in KINDS:
        if kind not in ("columns", "gramian"):
            yield pytest.param("natural", kind, marks=in_ci)


@pytest.mark.parametrize(("code", "kind"), [*cases()])
def test_the_update_is_that_of_the_compressed_rows(code, kind):
    """Two steps, one row that is away and one that is broken."""
    rows = rows_of()
    rows["c"] = rows["c"].at[5, 3].set(jnp.nan)
    steps = jax.tree.map(lambda x: jnp.stack([x, x]), rows)
    weights = jnp.ones(N * L).at[2].set(0)
    reducer = KINDS[kind]()
    state, found = on_mesh(reducer, steps, weights, wire=CODES[code])
    known, wanted = in_memory(reducer, CODES[code], steps, weights)
    # the same numbers, summed in another order
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, found, wanted)
    assert state.num_present == known.num_present == N * L - 2
    assert state.num_nonfinite == known.num_nonfinite == 1


@in_ci
def test_an_update_in_messages_is_the_same_everywhere_and_decompressed():
    code = compressors.stochastic_quantization(8, KEY)
    rows, weights = rows_of(N), jnp.ones(N)
    across = co.sharded(co.mean(), "data", update_wire=code)

    def each(rows):
        found, _ = across.update(rows, co.mean().init(PARAMS), PARAMS)
        return jax.tree.map(lambda x: x[None], found)

    spread = jax.shard_map(
        each, mesh=mesh_of(N), in_specs=P("data"), out_specs=P("data"), check_vma=False
    )
    found = jax.jit(spread)(rows)
    plain = jax.tree.map(lambda x: np.asarray(x).mean(0), rows)
    for name in PARAMS:
        of_all = np.asarray(found[name])
        assert np.all(of_all == of_all[:1])
        # a level of the largest entry's part
        assert np.abs(of_all[0] - plain[name]).max() <= np.abs(plain[name]).max() / 127
        assert np.any(of_all[0] != plain[name]) or of_all[0].size == 1
    assert weights.sum() == N


@in_ci
def test_signs_of_messages_decide_as_signs():
    """A vote reads nothing else, so one bit each is exact where no entry is zero."""
    rows = jax.tree.map(lambda x: x[None], rows_of())
    weights = jnp.arange(1.0, N * L + 1)
    _, found = on_mesh(co.sign_vote(), rows, weights, wire=CODES["sign"])
    vote = lambda rows: co.sign_vote().update(
        rows, co.sign_vote().init(PARAMS), PARAMS, weights=weights
    )
    wanted, _ = jax.jit(vote)(jax.tree.map(lambda x: x[0], rows))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[0], y), found, wanted)


@in_ci
@pytest.mark.parametrize("name", ["top_k", "sign", "int8", "random_k"])
def test_error_feedback_ahead_of_the_wire_is_of_what_travels(name):
    """Rows that come out of it are messages already, which travel without loss."""
    code = CODES[name]
    if name == "random_k":
        code = compressors.random_k(0.3, KEY, rescale=False)
    pieces = compressors.bucketed(code, count=N)
    tx = optax.chain(
        co.error_feedback(pieces, L, axis_name="data"),
        co.sharded(co.mean(), "data", wire=code),
    )
    # leaves that all devices have as much of: what a piece is filled up with would
    # count in its mean magnitude
    params = {"a": jnp.zeros((8, 5)), "c": jnp.zeros(12)}
    rng, steps = np.random.default_rng(3), 6
    rows = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=(N * L, *x.shape)), jnp.float32), params
    )

    def run(rows):
        def step(state, _):
            update, state = tx.update(rows, state, params)
            return state, update

        state = tx.init(params)
        varies = rows["c"][0, 0]
        start = jax.tree.map(lambda x: x + 0 * varies.astype(x.dtype), state[0])
        (feedback, _), updates = jax.lax.scan(step, (start, state[1]), length=steps)
        return jax.tree.map(lambda x: x.sum(0), updates), feedback.error

    mapped = jax.shard_map(
        run, mesh=mesh_of(N), in_specs=P("data"), out_specs=(P(), P("data"))
    )
    updates, errors = jax.jit(mapped)(rows)
    for name in params:
        came = steps * np.asarray(rows[name], np.float64).mean(0)
        left = np.asarray(errors[name], np.float64).mean(0)
        np.testing.assert_allclose(updates[name] + left, came, rtol=1e-4, atol=1e-4)


@in_ci
def test_parameters_that_are_cut_travel_in_messages_too():
    mesh = mesh_of(2, 2, names=("data", "model"))
    params = {"w": jnp.zeros((6, 8)), "b": jnp.zeros(5)}
    specs = {"w": P(None, "model"), "b": P()}
    rng = np.random.default_rng(2)
    rows = jax.tree.map(
        lambda x: jnp.asarray(1 + 0.2 * rng.normal(size=(4, *x.shape)), jnp.float32),
        params,
    )
    same = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), rows)
    for rule in (co.median(), co.normalized_mean()):
        across = co.sharded(
            rule, "data", mesh=mesh, param_specs=specs, wire=CODES["int8"]
        )
        found, state = across.update(rows, rule.init(params), params)
        wanted, _ = rule.update(rows, rule.init(params), params)
        assert state.num_present == 4
        for name in params:  # a level of each row
            level = np.abs(np.asarray(rows[name])).max() / 127
            assert np.abs(found[name] - wanted[name]).max() <= level
    mean = co.sharded(
        co.mean(), "data", mesh=mesh, param_specs=specs, wire=CODES["int4"]
    )
    found, _ = mean.update(same, co.mean().init(params), params)
    off = np.asarray(found["w"] - same["w"][0])
    assert np.any(off[:, :4] != off[:, 4:])  # draws differ along the other axis
    thin = co.sharded(
        co.mean(), "data", mesh=mesh, param_specs=specs, wire=CODES["low_rank"]
    )
    with pytest.raises(ValueError, match=r"`wire` must be one of entries: .* are cut"):
        thin.update(rows, co.mean().init(params), params)


def test_bad_arguments():
    for rule in (co.median(), co.among(co.cosine_filter(), co.sign_consensus())):
        with pytest.raises(ValueError, match=r"`wire` must be one that sends every"):
            co.sharded(rule, "data", wire=CODES["top_k"])
    with pytest.raises(ValueError, match=r"median\(\) compares rows .*; got random_k"):
        co.sharded(co.median(), "data", wire=CODES["random_k"])
    co.sharded(co.median(), "data", wire=CODES["int4"], update_wire=CODES["top_k"])
    with pytest.raises(ValueError, match=r"`wire` must be a compressor, such as"):
        co.sharded(co.median(), "data", wire="int8")
    with pytest.raises(ValueError, match=r"`update_wire` must be one of entries, not"):
        co.sharded(co.median(), "data", update_wire=CODES["low_rank"])
