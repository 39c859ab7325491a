"""Microbatches of rows on many devices under `jit`: one pass after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from benchmarks._traffic import bytes_in_turns
from tests._fsdp import (
    BY_ROW,
    DEVICES,
    GROUP,
    MESH,
    PARAMS,
    ROWS,
    SHARDINGS,
    SUMS,
    X,
    check,
    compiled,
    dealt,
    loss,
    of_rows,
    step_of,
)

TURNS_NOW = ("nothing", "minmod", "columns", "pairs", "mixed", "probe", "clipped")
TURNS = {  # rules, and how often rows are sent: once, what they merge to in every turn
    "nothing": (co.mean(), False),
    "minmod": (co.sign_consensus(), False),
    "moments": (co.sand_mask(), False),
    "clipped": (co.chain(co.clip_examples(0.05), co.mean()), False),
    "norms by leaf": (co.per_leaf(co.normalized_mean()), False),
    "bounds": (co.clipped_sum(0.05, divisor=16), False),
    "noise": (
        co.private_sum(0.05, noise_multiplier=1.0, key=jax.random.key(0), divisor=16),
        False,
    ),
    "losses": (co.among(co.keep_smallest_losses(9), co.sign_consensus(0.6)), False),
    "columns": (co.median(), True),
    "pairs": (co.cosine_filter(1.0), True),
    "about": (co.geometric_median(), True),
    "previous": (co.previous_update_filter(1.5), True),
    "clipped columns": (co.chain(co.clip_examples(0.05), co.median()), True),
    "mixed": (co.after(co.nearest_neighbor_mixing(2), co.mean()), True),
    "mixed columns": (
        co.chain(
            co.clip_examples(0.05),
            co.after(co.bucketing(2, jax.random.key(0)), co.median()),
        ),
        True,
    ),
    "among": (co.among(co.krum(1, 3), co.sign_consensus()), True),
    "probe": (co.chain(co.clip_examples(0.05), co.probe(), co.mean()), True),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind in TURNS_NOW else pytest.mark.whole_zoo)
        for kind in TURNS
    ],
)
def test_microbatches_of_rows_on_many_devices(kind):
    """The answer of one device; what a device sends, whatever the rule looks at."""
    reducer, rows_travel = TURNS[kind]
    x, weights = of_rows(16)
    weights = jnp.where(jnp.arange(16) % 2 == 1, weights, 0)  # none of the first turn
    x = x.at[3 * GROUP].set(jnp.inf)
    program = check(reducer, 8 * SUMS, x=x, weights=weights, microbatch_size=8)
    each = ROWS // DEVICES if rows_travel else 1
    arrays = sum(leaf[0].size for leaf in PARAMS["layers"].values())
    arrays = 4 * (arrays + PARAMS["readout"].size)
    if rows_travel:
        assert dealt(program.as_text()) == each * arrays  # in the body of a loop


@pytest.mark.slow
def test_rows_of_a_turn_have_each_their_own_size():
    """Where squares are no floats: of a linear loss, whose rows are as long as x."""
    rule, w = co.normalized_mean(), jnp.stack([jnp.eye(4)] * 2)
    sizes = 10.0 ** jnp.linspace(-28, 25, 16)[:, None, None]
    x = sizes * jax.random.normal(jax.random.key(0), (16, 2, 4))
    loss = lambda w, x: jnp.sum(jax.lax.scan(lambda h, w: (h @ w, None), x, w)[0])
    update = lambda face, **way: co.value_and_reduced_grad(loss, face, **way)(
        w, x, state=rule.init(w)
    )[1]
    face = co.sharded(rule, MESH.axis_names[0], mesh=MESH)
    x, wanted = jax.device_put(x, BY_ROW), update(rule, hold_rows=True)
    got = jax.jit(lambda: update(face, microbatch_size=8))()
    # of 16 rows of length 1
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
    assert jnp.abs(wanted).max() > 1e-3


@pytest.mark.slow
def test_microbatches_send_less_than_the_plain_gradient_of_them():
    """And a reducer that knows of no mesh leaves the batch where it is."""
    size = 4

    def plain(params, x):
        turns = x.reshape(-1, ROWS // size, GROUP, *x.shape[1:]).swapaxes(0, 1)
        step = lambda total, x: (
            jax.tree.map(
                jnp.add, total, jax.grad(loss)(params, x.reshape(-1, *x.shape[2:]))
            ),
            None,
        )
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(step, zeros, turns)[0]

    lies = {"in_shardings": (SHARDINGS, BY_ROW), "out_shardings": SHARDINGS}
    of_plain = jax.jit(plain, **lies).lower(PARAMS, X).compile()
    reducer = co.mean()
    lies["out_shardings"] = None, SHARDINGS, None
    alone = jax.jit(step_of(reducer, reducer, microbatch_size=size), **lies)
    ours = compiled(reducer, microbatch_size=size), alone.lower(PARAMS, X).compile()
    sent = [bytes_in_turns(x.as_text(), DEVICES) for x in (of_plain, *ours)]
    assert sent[1] <= sent[0]
    assert sent[2] <= 2 * sent[0]  # 6.7 where rows were looked up


def test_bad_microbatches():
    face = co.sharded(co.sign_consensus(), "data", mesh=MESH)
    with pytest.raises(ValueError, match=r"`microbatch_size` .* divisor .* 8.* got 3"):
        step_of(co.mean(), face, microbatch_size=3)(PARAMS, X)
    face = co.sharded(co.mean(), "data", mesh=MESH, wire=co.compressors.scaled_sign())
    with pytest.raises(ValueError, match="A sharded reducer takes microbatches"):
        step_of(co.mean(), face, microbatch_size=4)(PARAMS, X)
