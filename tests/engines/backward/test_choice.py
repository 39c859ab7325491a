"""When rows are held: by what they would take, and by what the rule asks for."""

import functools

import jax
import jax.numpy as jnp
import pytest

import consensus_optax as co
from consensus_optax._gradients.arguments import arranger
from consensus_optax.engines import _value_and_reduced_grad as module
from consensus_optax.engines.backward import choice
from consensus_optax.engines.backward.passes import Batch

WIDTH, ROWS = 32, 8


def loss(params, x):
    return jnp.mean(jnp.tanh(jnp.tanh(x @ params["up"]) @ params["down"]))


def batch(length, rows=ROWS):
    params = {"up": jnp.ones((WIDTH, WIDTH)), "down": jnp.ones((WIDTH, WIDTH))}
    x = jnp.ones((rows, length, WIDTH))
    arranged = arranger(0, 1, True, 1, None)((params, x))
    return Batch(loss, False, arranged, params)


def held(reducer, length, rows=ROWS, on_mesh=False):
    return choice.is_held(reducer.rule, batch(length, rows), on_mesh)


@pytest.fixture(autouse=True)
def _every_byte_counts(monkeypatch):
    monkeypatch.setattr(choice, "_FEW", 0)


def test_rows_are_held_up_to_four_times_the_parameters():
    """Factors of T terms are 2 T / WIDTH of a row's numbers, and rows are 1."""
    fold = co.sign_consensus()
    assert held(fold, length=8)  # 8 rows, half as large as the parameters
    assert not held(fold, length=9)
    assert not held(fold, length=10 * WIDTH)  # then they are stacked
    assert held(fold, length=10 * WIDTH, rows=4)


def test_little_is_held_anyway(monkeypatch):
    params = 2 * WIDTH * WIDTH * 4
    monkeypatch.setattr(choice, "_FEW", ROWS * params)
    assert held(co.sign_consensus(), length=10 * WIDTH)
    monkeypatch.setattr(choice, "_FEW", ROWS * params - 1)
    assert not held(co.sign_consensus(), length=10 * WIDTH)


@pytest.mark.parametrize(
    ("reducer", "alone", "on_mesh"),
    [
        (co.sign_consensus(), False, False),
        (co.normalized_mean(), False, False),
        (co.cosine_filter(), False, True),
        (co.median(), False, True),
        (co.among(co.cosine_filter(), co.sign_consensus()), False, True),
        (co.among(co.cosine_filter(), co.median()), False, True),
        (co.after(co.nearest_neighbor_mixing(1), co.mean()), False, True),
    ],
    ids=str,
)
def test_who_deals_rows_out_holds_them(reducer, alone, on_mesh):
    assert held(reducer, 10 * WIDTH) is alone
    assert held(reducer, 10 * WIDTH, on_mesh=True) is on_mesh


@pytest.mark.parametrize("hold_rows", [None, True, False])
def test_the_user_may_say_so(hold_rows, monkeypatch):
    used = []
    source = module.Backward.of
    monkeypatch.setattr(
        module.Backward, "of", lambda *args: used.append(1) or source(*args)
    )
    rule = co.sign_consensus()
    step = co.value_and_reduced_grad(loss, rule, hold_rows=hold_rows)
    for length in (1, 10 * WIDTH):
        params, x = batch(length).params, jnp.ones((ROWS, length, WIDTH))
        jax.eval_shape(functools.partial(step, state=rule.init(params)), params, x)
    assert len(used) == {None: 1, True: 0, False: 2}[hold_rows]


def test_bad_arguments_say_what_to_do():
    with pytest.raises(ValueError, match="`hold_rows` must be True or False"):
        co.value_and_reduced_grad(loss, co.mean(), hold_rows=1)
    with pytest.raises(ValueError, match="None with `microbatch_size`; got False"):
        co.value_and_reduced_grad(loss, co.mean(), hold_rows=False, microbatch_size=2)
