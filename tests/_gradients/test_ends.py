"""The ends of gradients are found in time that is linear in the program."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.extend.core.primitives import add_jaxvals_p

from consensus_optax._gradients import ends as module
from consensus_optax._gradients.ends import ends


def doubled(x):
    """A sum with 2**60 paths to its start, and a depth beyond any recursion."""
    for _ in range(60):
        x = add_jaxvals_p.bind(x, x)
    for _ in range(1000):
        x = add_jaxvals_p.bind(x[None][0], jnp.sin(x))
    return x


def in_a_call(x):
    return jax.jit(doubled)(x) if x.ndim else x


def in_a_scan(x):
    return lax.scan(lambda carry, _: (carry, doubled(x)), 0.0, length=2)[1]


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (doubled, {"input", "sin"}),
        (in_a_call, {"input", "sin"}),
        (in_a_scan, {"input in scan", "sin in scan"}),
    ],
)
def test_every_end_is_named_once_however_many_paths_lead_there(function, wanted):
    jaxpr = jax.make_jaxpr(function)(jnp.ones(3)).jaxpr
    (found,) = ends(jaxpr, jaxpr.outvars)
    assert set(found) == wanted
    assert len(found) == 2


class Counting(dict):
    """Producers that count how often they are asked."""

    asked = 0

    def __getitem__(self, var):
        Counting.asked += 1
        return super().__getitem__(var)


def test_every_variable_is_visited_at_most_twice(monkeypatch):
    """Once on the way down, once with what lies below; of all gradients together."""

    def loss(params, x):
        for w in params:
            x = jnp.tanh(x @ w + params[0][None])
        return jnp.mean(x)

    square = jnp.ones((4, 4))
    grad = functools.partial(jax.grad(loss), [square] * 160)
    jaxpr = jax.make_jaxpr(grad)(jnp.ones((2, 4, 4))).jaxpr
    producers = module.producers_of
    counting = lambda jaxpr: Counting(producers(jaxpr))
    monkeypatch.setattr(module, "producers_of", counting)
    found = ends(jaxpr, jaxpr.outvars)
    assert len(found) == 160
    assert 160 <= Counting.asked <= 2 * len(jaxpr.eqns)
