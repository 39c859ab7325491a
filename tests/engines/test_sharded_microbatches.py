"""Every device computes its rows a few at a time: still what all rows at once give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from benchmarks._traffic import bytes_sent
from tests._laws import close
from tests._stacks import matrix
from tests.engines.test_sharded import KINDS, mesh_of

pytestmark = pytest.mark.slow

DEVICES, EACH = 2, 5  # rows, in microbatches of 2: the last one is half full


def loss(params, batch):
    x, y = batch
    hidden = jnp.tanh(x @ params["w"] + params["b"][None])
    return jnp.mean((hidden @ params["v"] - y) ** 2), {"first": x[:, 0]}


def problem(all_bad=False):
    """Parameters, a batch of which one row is nan, and weights of which one is 0."""
    random = np.random.default_rng(0)
    draw = lambda *shape: np.asarray(random.normal(size=shape), np.float32)
    # small, so that no tanh saturates: 1 - tanh^2 is rounding there, of any sign
    params = {"w": 0.2 * draw(7, 3), "b": 0.2 * draw(3), "v": draw(3, 1)}
    x, y = draw(DEVICES * EACH, 7) + 1, draw(DEVICES * EACH, 1) + 1
    x[slice(None) if all_bad else 6] = np.nan
    weights = np.ones(DEVICES * EACH, np.float32)
    weights[1] = 0
    return params, (x, y), weights


def reduced(reducer, microbatch_size):
    """A step from (params, batch, weights) and a fresh state."""
    of_batch = co.value_and_reduced_grad(
        loss, reducer, has_aux=True, microbatch_size=microbatch_size
    )
    return lambda params, batch, weights: of_batch(
        params, batch, state=reducer.init(params), weights=weights
    )


def on_mesh(reducer, microbatch_size, given, check_vma=True, **options):
    reducer = co.sharded(reducer, "data", **options)

    def step(params, batch, weights):
        (value, aux), update, state = reduced(reducer, microbatch_size)(
            params, batch, weights
        )
        return value, aux, update, state

    run = jax.shard_map(
        step,
        mesh=mesh_of(DEVICES),
        in_specs=(P(), P("data"), P("data")),
        out_specs=(P(), P("data"), P(), P()),
        check_vma=check_vma,
    )
    return jax.jit(run)(*given)


@pytest.mark.parametrize(
    ("microbatch_size", "check_vma"),
    [(2, True), pytest.param(None, False, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_all_rows_at_once(kind, microbatch_size, check_vma):
    given = problem()
    (wanted_value, wanted_aux), wanted, known = jax.jit(reduced(KINDS[kind](), None))(
        *given
    )
    value, aux, update, state = on_mesh(
        KINDS[kind](), microbatch_size, given, check_vma
    )
    # of sums in another order, by a row whose entries are of order one
    close(matrix(update)[None], matrix(wanted)[None], 3e-5, names=[kind])
    np.testing.assert_allclose(value, wanted_value, rtol=1e-6)
    np.testing.assert_array_equal(aux["first"], wanted_aux["first"])
    assert state.consensus_ready == known.consensus_ready
    assert state.num_present == known.num_present == DEVICES * EACH - 2
    assert state.num_nonfinite == known.num_nonfinite == 1


@pytest.mark.parametrize("kind", ["fold", "combination", "gramian", "columns"])
def test_nobody_at_all(kind):
    value, _, update, state = on_mesh(KINDS[kind](), 2, problem(all_bad=True))
    assert np.isnan(value)
    assert not matrix(update).any()
    assert not state.consensus_ready
    assert state.num_nonfinite == DEVICES * EACH - 1


def test_outside_all_rows_are_there():
    mesh, (params, batch, weights) = mesh_of(DEVICES), problem()
    spread = jax.NamedSharding(mesh, P("data"))
    given = params, *jax.device_put((batch, weights), spread)
    rule = co.sharded(co.median(), "data", mesh=mesh)
    (value, _), update, _ = jax.jit(reduced(rule, None))(*given)
    (known, _), wanted, _ = jax.jit(reduced(co.median(), None))(params, batch, weights)
    np.testing.assert_allclose(value, known, rtol=1e-6)
    close(
        matrix(update)[None], matrix(wanted)[None], 3e-5, names=["median"]
    )  # as above


def test_microbatches_of_folds_and_means_send_no_more_than_a_plain_all_reduce():
    """Their stack would be five times as much."""
    params, (x, y), weights = problem()
    wide = 4001
    params["w"], x = np.zeros((wide, 3), np.float32), np.tile(x, wide)[:, :wide]
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    for reducer in (co.sign_consensus(), co.mean(), co.comparative_elimination(1)):
        run = jax.jit(lambda *given, rule=reducer: on_mesh(rule, 2, given))
        hlo = run.lower(params, (x, y), weights).compile().as_text()
        plain = 2 * 4 * size * (DEVICES - 1) / DEVICES
        assert plain <= bytes_sent(hlo, DEVICES) <= plain + 4096


def test_what_cannot_be_together_is_an_error():
    params, batch, weights = given = problem()
    code = co.compressors.scaled_sign()
    outside = co.sharded(co.median(), "data", mesh=mesh_of(DEVICES), wire=code)
    with pytest.raises(ValueError, match=r"inside of `jax\.shard_map`"):
        reduced(outside, 2)(params, batch, weights)
    for options in ({"wire_dtype": jnp.bfloat16}, {"param_specs": P()}):
        with pytest.raises(
            ValueError, match="Leave `microbatch_size` and `hold_rows` out"
        ):
            on_mesh(co.median(), 2, given, **options)
