"""Sharding constraints in a loss, seen from the rows.

A loss of a batch says how its activations are cut: ``P("data", None, "model")`` of
(batch, length, width). As the loss of one row its batch axis has ``group_size`` places,
and what the mesh axis is to cut is the axis of rows. There such names are brought.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from consensus_optax._rows.explicit import Explicit, names_of
from consensus_optax._typing import Array

_CONSTRAINT = "sharding_constraint"


class RowsAxis(NamedTuple):
    """What is known of the axis of rows before anything is traced.

    Attributes:
      group_size: length of the batch axis that the loss of one row sees, if any.
      names: mesh axes that cut the axis of rows, as in ``jax.vmap``, if told.
      look: is shown the jaxpr of one row and its arguments, and may raise.
      explicit: axes that are automatic but where the loss is traced, and how the
        arguments of all rows lie there.
    """

    group_size: int | None = None
    names: tuple[str, ...] = ()
    look: Callable[[Any, Any], None] | None = None
    explicit: Explicit = Explicit((), ())


def moved_to_rows(jaxpr: Any, rows_axis: RowsAxis) -> Any:
    """The jaxpr of one row, whose constraints name the axis of rows once it is mapped.

    Constraints of what all rows share stay as they are.
    """
    constraints = list(_constraints(jaxpr))
    names = rows_axis.names
    for eqn in () if names else constraints:
        names = tuple(dict.fromkeys((*names, *_of_rows(eqn, rows_axis.group_size))))
    told = any(_is_told(eqn) for eqn in constraints)
    return _rewritten(jaxpr, names) if told or (names and constraints) else jaxpr


def _is_told(eqn: Any) -> bool:
    """Whether the type of the array says already what is asked for: on explicit axes.

    There a constraint checks the loss as it is traced, and ``jax.vmap`` has no rule.
    """
    sharding = eqn.params["sharding"]
    if not isinstance(sharding, NamedSharding) or sharding.mesh.empty:
        return False
    return all(kind == AxisType.Explicit for kind in sharding.mesh.axis_types)


def _of_rows(eqn: Any, group_size: int | None) -> Iterator[str]:
    """Names that a constraint gives to the batch axis, or to what they cannot cut."""
    sharding, shape = eqn.params["sharding"], eqn.invars[0].aval.shape
    if not isinstance(sharding, NamedSharding):
        return
    for axis, entry in enumerate(sharding.spec):
        names = names_of(entry)
        is_batch = axis == 0 and shape[axis] == group_size
        if is_batch or shape[axis] % math.prod(sharding.mesh.shape[n] for n in names):
            yield from names


def _rewritten(jaxpr: Any, names: tuple[str, ...]) -> Any:
    """The jaxpr, those inside of its operations too, with such constraints."""
    within = lambda inner: _rewritten(inner, names)

    def of_eqn(eqn: Any) -> Any:
        sharding = eqn.params.get("sharding")
        if eqn.primitive.name == _CONSTRAINT and isinstance(sharding, NamedSharding):
            told = _is_told(eqn)
            if not (told or names):
                return eqn
            other = jnp.copy if told else _constraint(eqn, names)
            (one,) = jax.make_jaxpr(other)(eqn.invars[0].aval).eqns
            return eqn.replace(primitive=one.primitive, params=one.params)
        return eqn.replace(params=_with_inner(eqn.params, within))

    return jaxpr.replace(eqns=list(map(of_eqn, jaxpr.eqns)))


def _constraint(eqn: Any, names: tuple[str, ...]) -> Callable[[Array], Array]:
    """The constraint, which on rows names what cuts them, and nothing else by that."""
    sharding, free = eqn.params["sharding"], eqn.params["unconstrained_dims"]
    kinds = zip(sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True)
    usable = {name for name, kind in kinds if kind == AxisType.Auto}
    own = tuple(name for name in names if name in usable)

    @jax.custom_batching.custom_vmap
    def constrain(x: Array) -> Array:
        return eqn.primitive.bind(x, **eqn.params)

    @constrain.def_vmap
    def _(count: int, _: Any, x: Array) -> tuple[Array, bool]:
        fits = count % math.prod(sharding.mesh.shape[name] for name in own) == 0
        entries: list[Any] = [own if own and fits else PartitionSpec.UNCONSTRAINED]
        for axis in range(x.ndim - 1):
            before = names_of(sharding.spec[axis]) if axis < len(sharding.spec) else ()
            kept = tuple(name for name in before if name not in own)
            is_free = axis in free or len(kept) < len(before)
            entries.append(kept or (PartitionSpec.UNCONSTRAINED if is_free else None))
        spec = PartitionSpec(*entries)
        return lax.with_sharding_constraint(x, NamedSharding(sharding.mesh, spec)), True

    return constrain


def _constraints(jaxpr: Any) -> Iterator[Any]:
    """All of them, those inside of operations too."""
    found = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == _CONSTRAINT]
    inside: list[Any] = []

    def look(inner: Any) -> Any:
        inside.append(inner)
        return inner

    for eqn in jaxpr.eqns:
        _with_inner(eqn.params, look)
    yield from found
    for inner in inside:
        yield from _constraints(inner)


def _with_inner(params: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """An operation's parameters with the jaxprs among them changed."""

    def changed(value: Any) -> Any:
        if isinstance(value, core.ClosedJaxpr):
            return core.ClosedJaxpr(change(value.jaxpr), value.consts)
        if isinstance(value, core.Jaxpr):
            return change(value)
        return tuple(map(changed, value)) if type(value) is tuple else value

    return {name: changed(value) for name, value in params.items()}
