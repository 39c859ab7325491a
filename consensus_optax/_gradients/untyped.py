"""Programs traced along explicit mesh axes, for where these are automatic.

A loss that says how its results are cut, by ``out_sharding=`` or ``reshard``, has to be
traced where types tell how arrays are cut. What is evaluated of it has no such types:
what the loss asked for is a constraint, as a loss for automatic axes has it, and all
else is left to the compiler, which cuts what it makes as it does on automatic axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.sharding import AxisType, NamedSharding, PartitionSpec

# Of a result that is to be cut so: by all that have it, and by a reshape.
_ASKS = {"out_sharding": None, "sharding": "reshape"}


def untyped(closed: Any) -> Any:
    """The same program of arrays along automatic axes.

    Args:
      closed: what was traced with its arguments, which are such, brought to explicit
        axes first: a ``reshard`` of each, which says how they lie, and asks nothing.
    """
    consts = [_freed(each) for each in closed.consts]
    entering = closed.jaxpr.invars
    return core.ClosedJaxpr(_of_jaxpr(closed.jaxpr, entering), consts)


def _freed(const: Any) -> Any:
    """What a program is closed over."""
    if not isinstance(const, jax.Array) or not _is_typed(jax.typeof(const)):
        return const
    return jax.sharding.reshard(const, PartitionSpec(*[None] * const.ndim))


def _of_jaxpr(jaxpr: Any, entering: Sequence[Any] = ()) -> Any:
    known: dict[Any, Any] = {}
    eqns: list[Any] = []
    enters = {id(var) for var in entering}

    def own(var: Any) -> Any:
        if isinstance(var, core.Literal):
            return var
        if var not in known:
            known[var] = type(var)(_of_type(var.aval))
        return known[var]

    invars, constvars = list(map(own, jaxpr.invars)), list(map(own, jaxpr.constvars))
    for eqn in jaxpr.eqns:
        inputs = list(map(own, eqn.invars))
        if eqn.primitive.name == "reshard":
            wanted = eqn.params["dst_sharding"]
            if id(eqn.invars[0]) in enters or not wanted.mesh.explicit_axes:
                known[eqn.outvars[0]] = inputs[0]
                continue
            eqns.append(_constraint(inputs[0], own(eqn.outvars[0]), wanted, eqn))
            continue
        outputs = list(map(own, eqn.outvars))
        asked = _asked(eqn)
        made = outputs
        if asked is not None:
            made = [core.Var(outputs[0].aval)]
        params = {name: _of_param(name, x) for name, x in eqn.params.items()}
        own_eqn = eqn.replace(invars=inputs, outvars=made, params=params)
        eqns.append(own_eqn.replace(ctx=_context(eqn)))
        if asked is not None:
            eqns.append(_constraint(made[0], outputs[0], asked, eqn))
    outvars = list(map(own, jaxpr.outvars))
    return jaxpr.replace(invars=invars, constvars=constvars, outvars=outvars, eqns=eqns)


def _asked(eqn: Any) -> Any:
    """How an operation's result is to be cut, if it says so."""
    for name, primitive in _ASKS.items():
        sharding = eqn.params.get(name)
        asks = isinstance(sharding, NamedSharding) and sharding.mesh.explicit_axes
        if asks and primitive in (None, eqn.primitive.name):
            return sharding
    return None


def _constraint(given: Any, out: Any, wanted: Any, eqn: Any) -> Any:
    """The equation of an array that is to be cut so, along axes that were explicit."""
    mesh = _of_mesh(wanted.mesh)
    entries = list(wanted.spec)
    if wanted.mesh.auto_axes:  # which may cut what the others do not
        entries = [PartitionSpec.UNCONSTRAINED if x is None else x for x in entries]
    sharding = NamedSharding(mesh, PartitionSpec(*entries))
    constrain = lambda x: lax.with_sharding_constraint(x, sharding)
    with jax.sharding.use_abstract_mesh(mesh):
        (one,) = jax.make_jaxpr(constrain)(given.aval).eqns
    return one.replace(invars=[given], outvars=[out], source_info=eqn.source_info)


def _of_param(name: str, value: Any) -> Any:
    """An operation's parameter, the jaxprs in it too."""
    if isinstance(value, core.ClosedJaxpr):
        return core.ClosedJaxpr(_of_jaxpr(value.jaxpr), value.consts)
    if isinstance(value, core.Jaxpr):
        return _of_jaxpr(value)
    if type(value) in (tuple, list):
        return type(value)(_of_param(name, each) for each in value)
    if isinstance(value, NamedSharding):
        if not value.mesh.explicit_axes:
            return value
        alone = name in ("sharding", "out_sharding")
        return None if alone else NamedSharding(_of_mesh(value.mesh), value.spec)
    if isinstance(value, jax.sharding.Mesh | jax.sharding.AbstractMesh):
        return _of_mesh(value)
    return _of_type(value) if isinstance(value, jax.core.ShapedArray) else value


def _of_type(aval: Any) -> Any:
    """The type of an array as it is along automatic axes."""
    if not _is_typed(aval):
        return aval
    mesh, spec = aval.sharding.mesh, PartitionSpec(*[None] * aval.ndim)
    return aval.update(sharding=NamedSharding(_of_mesh(mesh), spec))


def _is_typed(aval: Any) -> bool:
    return isinstance(aval, jax.core.ShapedArray) and bool(
        aval.sharding.mesh.explicit_axes
    )


def _of_mesh(mesh: Any) -> Any:
    """The mesh with its explicit axes automatic."""
    if not mesh.explicit_axes:
        return mesh
    free = dict.fromkeys(mesh.explicit_axes, AxisType.Auto)
    return mesh.abstract_mesh.update_axis_types(free)


def _context(eqn: Any) -> Any:
    """Where an equation stands: the same but for the mesh there."""
    with eqn.ctx.manager:
        mesh = jax.sharding.get_abstract_mesh()
        if not mesh.explicit_axes:
            return eqn.ctx
        with jax.sharding.use_abstract_mesh(_of_mesh(mesh)):
            (one,) = jax.make_jaxpr(jnp.copy)(0.0).eqns
            return one.ctx
