"""Arrays that all rows share: what is the same in every row before it is added."""

from __future__ import annotations

from typing import Any

from jax.extend import core

from consensus_optax._gradients.sources import PLACES


def shared_arrays(jaxpr: Any) -> dict[Any, tuple[Any, int]]:
    """Variables that are another one repeated along a new axis: that one, and the axis.

    A penalty on a weight has the same gradient in every row. Where it is added to what
    the data say, ``jax.vmap`` repeats it.
    """
    found: dict[Any, tuple[Any, int]] = {}
    for eqn in jaxpr.eqns:
        (operand, *_), (out, *_) = eqn.invars or [None], eqn.outvars or [None]
        if operand is None or isinstance(operand, core.Literal):
            continue
        if eqn.primitive.name == "broadcast_in_dim":
            whole, kept = out.aval.shape, eqn.params["broadcast_dimensions"]
            new = [axis for axis in range(len(whole)) if axis not in kept]
            rest = tuple(whole[axis] for axis in kept)
            if len(new) == 1 and rest == operand.aval.shape and len(eqn.invars) == 1:
                found[out] = operand, new[0]
        elif eqn.primitive.name in PLACES and operand in found:
            found[out] = found[operand]
    return found
