"""optax ahead of the reducer, on factored rows: right, or an error when traced."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from tests._stacks import factored

pytestmark = pytest.mark.standard_promotion  # optax mixes its counts with floats

ROWS, PARAMS, _ = factored()
KINDS = ["dense", "layers", "sequence", "table"]
RIGHT = {  # selections, and what makes zeros
    "identity": optax.identity(),
    "masked": optax.masked(optax.scale(3.0), dict.fromkeys(ROWS, False)),
    "set_to_zero": optax.set_to_zero(),
    "stateless": optax.stateless(lambda rows, params: rows),
}
WRONG = {
    "adam": optax.adam(0.1),
    "adaptive_grad_clip": optax.adaptive_grad_clip(1.0),
    "add_decayed_weights": optax.add_decayed_weights(0.1),
    "add_noise": optax.add_noise(0.1, 0.1, jax.random.key(0)),
    "apply_if_finite": optax.apply_if_finite(optax.scale(0.5), 3),
    "bfloat16": optax.stateless(lambda g, _: optax.tree.cast(g, jnp.bfloat16)),
    "centralize": optax.centralize(),
    "clip": optax.clip(1.0),
    "clip_by_block_rms": optax.clip_by_block_rms(1.0),
    "clip_by_global_norm": optax.clip_by_global_norm(1.0),
    "ema": optax.ema(0.9),
    "lion": optax.lion(0.1),
    "multi_steps": optax.MultiSteps(optax.scale(0.5), 2).gradient_transformation(),
    "normalize_by_update_norm": optax.normalize_by_update_norm(),
    "partition": optax.partition({0: optax.clip(1.0)}, dict.fromkeys(ROWS, 0)),
    "scale": optax.scale(0.5),
    "scale_by_schedule": optax.scale_by_schedule(lambda step: 0.5),
    "scale_by_sign": optax.scale_by_sign(),
    "scale_by_trust_ratio": optax.scale_by_trust_ratio(),
    "sgd": optax.sgd(0.1),
    "trace": optax.trace(0.9),
}
# What raises: JAX, of the seal's dtype; optax, of another tree; our own reducers.
ERRORS = (TypeError, ValueError, NotImplementedError)


def first_update(tx, rows, params):
    return tx.update(rows, tx.init(params), params)[0]


def only(kind):
    nothing = optax.MaskedNode()
    part = lambda tree: {k: v if k == kind else nothing for k, v in tree.items()}
    return part(ROWS), part(PARAMS)


@pytest.mark.slow
@pytest.mark.parametrize("name", RIGHT)
def test_what_selects_is_right(name):
    update = lambda rows: first_update(
        optax.chain(RIGHT[name], co.mean()), rows, PARAMS
    )
    ours, wanted = jax.jit(update)(ROWS), jax.jit(update)(co.materialize(ROWS))
    for kind in KINDS:  # bfloat16 factors, whose product is float32 or rounded to it
        tolerance = 2**-7 if kind == "sequence" else 1e-5
        np.testing.assert_allclose(ours[kind], wanted[kind], tolerance, tolerance)


@pytest.mark.parametrize("name", WRONG)
def test_what_calculates_is_an_error(name):
    """Eagerly and traced, before anything comes out."""
    tx = WRONG[name]
    for kind in KINDS:
        rows, params = only(kind)
        state = tx.init(params)
        for update in (tx.update, lambda *x: jax.eval_shape(tx.update, *x)):
            with pytest.raises(ERRORS):
                update(rows, state, params)


CALCULATIONS = {
    "mean": lambda x: x.mean(0),
    "half": lambda x: x * 0.5,
    "negative": lambda x: -x,
    "sum": lambda x: x + x,
    "square": lambda x: x**2,
    "norm": jnp.linalg.norm,
    "median": lambda x: jnp.median(x, 0),
    "clip": lambda x: jnp.clip(x, -1, 1),
    "choice": lambda x: jnp.where(x > 0, x, 0),
    "dtype": lambda x: x.astype(jnp.bfloat16),
    "tensordot": lambda x: jnp.tensordot(jnp.ones(x.shape[0]), x, 1),
    "numpy": np.asarray,
}


@pytest.mark.parametrize("name", CALCULATIONS)
def test_calculating_with_leaves_is_an_error(name):
    for kind in KINDS:
        leaf = ROWS[kind]
        for over in (jax.tree.map, lambda f, x: jax.eval_shape(jax.tree.map, f, x)):
            with pytest.raises(ERRORS):
                over(CALCULATIONS[name], leaf)


def test_norms_of_trees_are_an_error():
    for norm in (optax.tree.norm, optax.tree.sum, optax.tree.max):
        with pytest.raises(ERRORS):
            norm(ROWS)


def test_errors_say_that_a_reducer_is_missing():
    for kind in KINDS:
        rows, params = only(kind)
        with pytest.raises(TypeError, match="a reducer is missing here"):
            first_update(optax.scale(0.5), rows, params)
        with pytest.raises(TypeError, match="a reducer is missing here"):
            optax.apply_updates(params, rows)


def test_no_leaf_is_calculated_with_where_only_biases_are_arrays():
    """A forgotten reducer: nothing comes out."""
    loss = lambda params, x: jnp.mean((x @ params["w"] + params["b"][None]) ** 2)
    params = {"b": jnp.zeros(16), "w": jnp.ones((32, 16))}
    rows = co.per_example_grad(loss)(params, jnp.ones((4, 32)))
    assert co.is_outer_product(rows["w"])
    assert rows["b"].shape == (4, 16)
    with pytest.raises(TypeError, match="a reducer is missing here"):
        first_update(optax.sgd(0.1), rows, params)
    with pytest.raises(ValueError, match=r"\['w'\](.|\n)*OuterProduct"):  # by optax
        first_update(optax.adam(0.1), rows, params)
