"""What ends a gradient is evaluated as soon as its operands are there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax._gradients.claims import NOBODY, Claim
from consensus_optax._gradients.schedule import schedule, waiting


def loss(params, x):
    for w in params:
        x = jnp.tanh(jnp.einsum("nm,tn->tm", w, x))  # the kernel is the first operand
    return x.sum()


def traced():
    rows = jax.vmap(jax.grad(loss), (None, 0))
    jaxpr = jax.make_jaxpr(rows)([jnp.ones((4, 4))] * 3, jnp.ones((2, 5, 4))).jaxpr
    of = {var: Claim(i, jnp.float32, 0) for i, var in enumerate(jaxpr.outvars)}
    return jaxpr, NOBODY._replace(of=of).handed_back(jaxpr)


def test_as_it_stands_if_nothing_is_claimed():
    jaxpr, _ = traced()
    assert list(schedule(jaxpr, NOBODY).eqns) == list(jaxpr.eqns)


def test_every_equation_once_and_after_those_it_reads():
    jaxpr, claims = traced()
    plan = schedule(jaxpr, claims)
    assert {id(eqn) for eqn in plan.eqns} == {id(eqn) for eqn in jaxpr.eqns}
    assert len(plan.eqns) == len(jaxpr.eqns)
    known = {*jaxpr.invars, *jaxpr.constvars}
    for eqn in plan.eqns:
        variables = [
            x for x in eqn.invars if not isinstance(x, jax.extend.core.Literal)
        ]
        assert known.issuperset(variables)
        known.update(eqn.outvars)


def test_products_come_before_whatever_else_reads_their_operands_last():
    """So that what goes on can be made to wait until they have been read."""
    jaxpr, claims = traced()
    plan = schedule(jaxpr, claims)
    place = {id(eqn): i for i, eqn in enumerate(plan.eqns)}
    assert len(plan.latest) == 3
    for product, operand in plan.latest.items():
        (own,) = [eqn for eqn in plan.eqns if product in eqn.outvars]
        (made,) = [eqn for eqn in plan.eqns if operand in eqn.outvars]
        between = plan.eqns[place[id(made)] + 1 : place[id(own)]]
        assert all(eqn.primitive.name == "transpose" for eqn in between)
        readers = [eqn for eqn in jaxpr.eqns if operand in eqn.invars]
        # the kernel was the first operand, so JAX goes on before it ends the gradient
        assert all(place[id(eqn)] >= place[id(made)] for eqn in readers)


@pytest.mark.parametrize("value", [0.0, 1.0, -jnp.inf, jnp.nan])
def test_what_waits_is_what_it_was(value):
    made = {"sums": jnp.array([3, 4]), "like": jnp.full((2, 2), value)}
    array = jnp.array([1.5, jnp.nan, -0.0])
    found = jax.jit(waiting)(array, made)
    np.testing.assert_array_equal(found, array)
