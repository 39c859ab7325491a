"""Frozen parameters stand still, and cost nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from tests._stacks import B, factored

pytestmark = pytest.mark.standard_promotion  # optax mixes its counts with floats

ROWS, PARAMS, _ = factored()
FROZEN = {"dense", "sequence"}
MASK = {name: name in FROZEN for name in ROWS}


def optimizer():
    return optax.chain(co.mean(), optax.adamw(0.1, weight_decay=0.5))


def first_update(tx, rows=ROWS, params=PARAMS, **extra):
    return tx.update(rows, tx.init(params), params, **extra)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mask", [MASK, lambda params: {n: n in FROZEN for n in params}]
)
def test_the_others_are_as_without_the_frozen_ones(mask):
    rest = lambda tree: {n: leaf for n, leaf in tree.items() if n not in FROZEN}
    weights = jnp.arange(B) + 1.0
    tx = co.freeze(optimizer(), mask)
    ours, state = first_update(tx, weights=weights)
    alone, wanted = first_update(optimizer(), rest(ROWS), rest(PARAMS), weights=weights)
    for name, update in ours.items():
        assert update.shape == PARAMS[name].shape
        assert update.dtype == PARAMS[name].dtype
        if name in FROZEN:
            assert not update.any()
        else:
            np.testing.assert_array_equal(update, alone[name])
    sizes = lambda tree: [x.shape for x in jax.tree.leaves(tree)]
    assert sizes(state) == sizes(wanted)


def test_one_flag_for_a_subtree_and_everything_frozen():
    params = {"body": {"w": jnp.ones(2), "b": jnp.ones(())}, "head": jnp.ones(2)}
    rows = jax.tree.map(lambda p: jnp.ones((4, *p.shape)), params)
    updates, _ = first_update(
        co.freeze(optimizer(), {"body": True, "head": False}), rows, params
    )
    assert not updates["body"]["w"].any()
    assert updates["head"].all()
    updates, _ = first_update(co.freeze(optimizer(), True), rows, params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates))


def test_a_nan_in_a_frozen_leaf_excludes_no_row():
    rows = {"a": jnp.full((4, 2), jnp.nan), "b": jnp.ones((4, 2))}
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    tx = co.freeze(co.mean(), {"a": True, "b": False})
    updates, state = first_update(tx, rows, params)
    assert (updates["a"].tolist(), updates["b"].tolist()) == ([0, 0], [1, 1])
    assert state.num_present == 4


def test_rows_of_frozen_leaves_are_not_computed():
    """The program does what it does for a loss in which they are constants."""
    loss = lambda params, x: jnp.mean((jnp.tanh(x @ params["in"]) @ params["out"]) ** 2)
    params = {"in": jnp.ones((64, 128)), "out": jnp.ones((128, 64))}
    tx = co.freeze(co.sign_consensus(), {"in": True, "out": False})
    head = co.sign_consensus()

    def frozen(params, x):
        rows = co.per_example_grad(loss)(params, x)
        return tx.update(rows, tx.init(params), params)[0]

    def constant(params, x):
        of_head = lambda out, x: loss({**params, "out": out}, x)
        rows = co.per_example_grad(of_head)(params["out"], x)
        return head.update(rows, head.init(params["out"]), params["out"])[0]

    batch = jnp.ones((8, 64))
    flops = [
        jax.jit(step).lower(params, batch).compile().cost_analysis()["flops"]
        for step in (frozen, constant)
    ]
    assert flops[0] <= flops[1]


@pytest.mark.parametrize("mask", [{"dense": True}, {**MASK, "dense": "no"}, 1, None])
def test_another_mask_is_an_error(mask):
    with pytest.raises(ValueError, match="`mask` must be a tree of bools"):
        co.freeze(optimizer(), mask).init(PARAMS)


def test_parameters_are_needed():
    tx = co.freeze(optimizer(), MASK)
    with pytest.raises(ValueError, match="needs `params`"):
        tx.update(ROWS, tx.init(PARAMS))


def test_a_target_is_cut_as_rows_are():
    train = optax.chain(co.select_toward(min_cosine=0.5), optax.sgd(-1.0))
    optimizer, params = co.freeze(train, [True, False]), [jnp.ones(2), jnp.ones(1)]
    rows = [jnp.ones((3, 2)), jnp.array([[1.0], [3.0], [-4.0]])]
    target = [-jnp.ones(2), jnp.ones(1)]
    state = optimizer.init(params)
    update, _ = optimizer.update(rows, state, params, target=target)
    assert [leaf.tolist() for leaf in update] == [[0, 0], [2]]
