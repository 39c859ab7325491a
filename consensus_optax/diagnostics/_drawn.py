"""Random numbers that a loss draws by a key that no example has, by its program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.interpreters import partial_eval

from consensus_optax._gradients.arguments import positions
from consensus_optax._gradients.dependence import Tasks, reached, tasks_of

_DRAWS = ("random_bits", "random_gamma", "threefry2x32", "rng_bit_generator")
_BATCH = Tasks({0})


def draws_alike(fun: Callable[..., Any], call: tuple[Any, ...], options: Any) -> bool:
    """Whether numbers are drawn for the loss by what does not depend on the batch.

    A key of each example is a part of the batch, and what is drawn for aux alone, or
    for another of several losses, is not drawn for this one.
    """
    batch = positions("batch_argnums", options.get("batch_argnums", 1), len(call))
    given = {i: call[i] for i in batch}

    def value(given: dict[int, Any]) -> Any:
        result = fun(*[given.get(i, argument) for i, argument in enumerate(call)])
        return result[0] if options.get("has_aux", False) else result

    program = jax.make_jaxpr(value)(given).jaxpr
    used = [True] * len(program.outvars)
    program, _ = partial_eval.dce_jaxpr(program, used, instantiate=True)
    return _draws(program, [_BATCH] * len(program.invars))


def _draws(program: Any, given: Sequence[Tasks]) -> bool:
    known = reached(program, given)
    for eqn in program.eqns:
        tasks = [tasks_of(var, known) for var in eqn.invars]
        if eqn.primitive.name in _DRAWS:
            if not any(tasks):
                return True
            continue
        for inner in _inside(eqn):  # of its last operands: a branch has no index
            if _draws(inner, tasks[len(tasks) - len(inner.invars) :]):
                return True
    return False


def _inside(eqn: Any) -> Iterator[Any]:
    """The programs of a call, a loop or a choice."""
    for value in eqn.params.values():
        for part in jax.tree.leaves(value, is_leaf=lambda part: hasattr(part, "jaxpr")):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns") and len(inner.invars) <= len(eqn.invars):
                yield inner
