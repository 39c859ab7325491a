"""Programs of losses for explicit axes, as they are evaluated along automatic ones."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from consensus_optax._gradients.untyped import untyped
from consensus_optax._rows.explicit import Explicit, automatic, explicit_again

AXES = (2, 2), ("data", "model")
MESH = jax.make_mesh(*AXES)  # explicit by default
MIXED = jax.make_mesh(*AXES, axis_types=(AxisType.Auto, AxisType.Explicit))


def place(x, *spec, mesh=MESH):
    return jax.device_put(x, NamedSharding(mesh, P(*spec)))


def programs(function, args):
    """The program, traced where types tell how arrays are cut, before and after."""
    lie, found = Explicit.of(args), []

    def inside(*args):
        again = lambda *args: explicit_again(function, args, lie)
        found.extend([closed := jax.make_jaxpr(again)(*args), untyped(closed)])
        leaves = jax.core.eval_jaxpr(found[1].jaxpr, found[1].consts, *args)
        return leaves[0]

    result = jax.jit(lambda *args: automatic(inside, args, P()))(*args)
    return *found, result


def everything(closed):
    """All equations, those inside of operations too."""
    for jaxpr in [closed.jaxpr if hasattr(closed, "jaxpr") else closed]:
        for eqn in jaxpr.eqns:
            yield eqn
            for inner in jax.tree.leaves(list(eqn.params.values())):
                if hasattr(inner, "eqns"):
                    yield from everything(inner)


def assert_untyped(closed):
    for eqn in everything(closed):
        assert eqn.primitive.name != "reshard"
        for var in (*eqn.invars, *eqn.outvars):
            if not isinstance(var, jax.extend.core.Literal):
                assert not var.aval.sharding.mesh.explicit_axes, eqn
        with eqn.ctx.manager:
            assert not jax.sharding.get_abstract_mesh().explicit_axes


def test_what_is_asked_of_results_becomes_a_constraint():
    def function(x, w):
        asked = {"out_sharding": P("data", None)}
        y = jnp.einsum("bm,mn->bn", x, jax.sharding.reshard(w, P(None, None)), **asked)
        return jax.lax.reshape(y, (2, 2, 3), out_sharding=P("data", None, None))

    args = place(jnp.ones((4, 6)), "data", "model"), place(jnp.ones((6, 3)), "model")
    _, after, result = programs(function, args)
    asked = [x for x in everything(after) if x.primitive.name == "sharding_constraint"]
    wanted = [P(None, None), P("data", None), P("data", None, None)]
    assert [eqn.params["sharding"].spec for eqn in asked] == wanted
    assert_untyped(after)
    np.testing.assert_array_equal(result, jnp.full((2, 2, 3), 6.0))


def test_inside_of_operations_and_of_what_is_closed_over():
    table = place(jnp.arange(4.0), "model")

    @jax.custom_jvp
    def twice(x):
        return 2 * x

    twice.defjvp(lambda x, t: (twice(*x), 2 * t[0]))

    def function(x):
        step = jax.checkpoint(lambda x, _: (jnp.sin(x + table[None]), None))
        x = jax.lax.scan(step, x, None, length=2)[0]
        x = jax.lax.cond(x.sum() > 0, twice, jax.jit(jnp.tanh), x)
        x = jax.lax.while_loop(lambda x: x.sum() > 9, lambda x: x / 2, x)
        own = lambda x: jax.lax.psum(x, "data")
        whole = {"in_specs": P("data"), "out_specs": P(), "axis_names": {"data"}}
        return jax.shard_map(own, mesh=MESH, **whole)(x)

    x = place(jnp.arange(16.0).reshape(4, 4) / 9, "data", "model")
    before, after, result = programs(function, (x,))
    assert any(x.primitive.name == "reshard" for x in everything(before))
    assert_untyped(after)
    np.testing.assert_allclose(result, jax.jit(function)(x), rtol=1e-6)


def test_axes_that_were_automatic_may_cut_what_the_others_leave():
    x = place(jnp.ones((4, 4)), None, "model", mesh=MIXED)
    function = lambda x: jax.sharding.reshard(2 * x, P("model", None))
    _, after, result = programs(function, (x,))
    (asked,) = re.findall(r"sharding_constraint\[(.*?)\]\s", str(after), re.DOTALL)
    assert "UNCONSTRAINED" in asked
    np.testing.assert_array_equal(result, 2 * jnp.ones((4, 4)))
