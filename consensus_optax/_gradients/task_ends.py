"""In which operations the rows of several losses end, and which losses have any."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from consensus_optax._gradients.arguments import Arranged
from consensus_optax._gradients.dependence import tasks_of
from consensus_optax._gradients.ends import ends
from consensus_optax._gradients.pullbacks import Program, program_of
from consensus_optax._gradients.task_rows import pulled


class TaskEnd(NamedTuple):
    """What is said of one leaf's rows.

    Attributes:
      tasks: losses that have a gradient in it, by number.
      parts: of each part that is added up to the rows, the losses that share it and
        where it ends.
    """

    tasks: tuple[int, ...]
    parts: tuple[tuple[tuple[int, ...], str], ...]


def ends_of_tasks(losses: Any, arranged: Arranged, groups: bool) -> list[TaskEnd]:
    """That of every leaf, of rows of the whole batch or of every group of examples."""
    found: list[TaskEnd] = []

    def of_call(*args: Any) -> Any:
        one = pulled(losses, arranged, args)
        program, _, _ = program_of(one.pull, one.cotangent, one.ones, groups)
        found[:] = [_told(program, var) for var in program.jaxpr.outvars]
        return one.values

    if not groups:
        of_call(*arranged.args)
        return found
    function, in_axes, args = arranged.without_shared(of_call)
    jax.vmap(function, tuple(in_axes))(*args)
    return found


def _told(program: Program, var: Any) -> TaskEnd:
    parts = program.parts(var)
    names = [" + ".join(each) for each in ends(program.jaxpr, parts)]
    shared = [tuple(sorted(tasks_of(part, program.reached))) for part in parts]
    tasks = sorted({task for each in shared for task in each})
    return TaskEnd(tuple(tasks), tuple(zip(shared, names, strict=True)))
