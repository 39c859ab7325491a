"""What is wrong on purpose: each must be an error in our words."""

import traceback

import jax
import jax.numpy as jnp
import numpy as np
import optax

import consensus_optax as co


def documented(error):
    """Whether an error names what it is about, and was raised by this library."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = "/consensus_optax/" in frames[-1].filename
    return ours and "`" in str(error)


def _rows(data):
    return jax.tree.map(lambda p: jnp.ones((3, *p.shape), p.dtype), data.params())


def _update(tx, rows, data, **extra):
    params = data.params()
    return tx.update(rows, tx.init(params), params, **extra)


def no_params(reducer, data):
    reducer.update(_rows(data), reducer.init(data.params()))


def no_state(reducer, data):
    reducer.update(_rows(data), None, data.params())


def reduced_twice(reducer, data):
    _update(optax.chain(reducer, co.mean()), _rows(data), data)


def trailing_axis(reducer, data):
    rows = jax.tree.map(lambda p: jnp.ones((*p.shape, 3, 1), p.dtype), data.params())
    _update(reducer, rows, data)


def weights_of_another_shape(reducer, data):
    _update(reducer, _rows(data), data, weights=jnp.ones((3, 1)))


def negative_weight(reducer, data):
    _update(reducer, _rows(data), data, weights=np.array([1.0, -1.0, 1.0]))


def misspelt(reducer, data):
    _update(reducer, _rows(data), data, weight=jnp.ones(3))


def forgotten_reducer(reducer, data):
    del reducer
    _update(optax.chain(optax.sgd(1.0), co.guard()), _rows(data), data)


def masked(reducer, data):
    mask = [i > 0 for i in range(len(data.params()))]
    _update(optax.chain(optax.masked(reducer, mask), co.guard()), _rows(data), data)


def wrapped_rows(reducer, data):
    around = co.skip_if_empty(optax.chain(reducer, optax.sgd(1.0)))
    _update(around, _rows(data), data)


def rows_of_another_model(reducer, data):
    _update(reducer, [*_rows(data), jnp.ones((3, 2))], data)


def no_microbatch(reducer, data):
    co.value_and_reduced_grad(data.loss, reducer, microbatch_size=0)


def no_batches(reducer, data):
    co.accumulate(reducer, 0)


def complex_rows(reducer, data):
    rows = jax.tree.map(lambda x: x.astype(jnp.complex64), _rows(data))
    _update(reducer, rows, data)


def no_reducer(reducer, data):
    co.sharded(optax.sgd(1.0), "data")


FAULTS = {
    fault.__name__: fault
    for fault in (
        *(no_params, no_state, reduced_twice, trailing_axis, negative_weight, misspelt),
        *(weights_of_another_shape, forgotten_reducer, masked, wrapped_rows),
        *(rows_of_another_model, no_microbatch, no_batches, complex_rows, no_reducer),
    )
}
