"""How rows of several losses come: what :func:`explain` says of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from consensus_optax._gradients.arguments import Argnums, Arranged, arranger
from consensus_optax._gradients.task_ends import TaskEnd, ends_of_tasks
from consensus_optax._gradients.task_rows import (
    checked_losses,
    of_all,
    of_groups,
    of_one_call,
)


def task_arranger(
    argnums: Argnums,
    batch_argnums: Argnums,
    keep_batch_dim: bool,
    group_size: int | None,
    num_rows: int | None,
    prng_argnum: int | None,
) -> Callable[[Sequence[Any]], Arranged]:
    """What arranges a call: all rows of one batch, or of groups of examples."""
    if group_size is None and num_rows is None:
        return of_one_call(argnums)
    size = 1 if group_size is None else group_size
    given = argnums, batch_argnums, keep_batch_dim, size, prng_argnum
    return arranger(*given, num_rows=num_rows)


def task_rows(
    fun: Callable[..., Any], arranged: Arranged, has_aux: bool, groups: bool
) -> tuple[Any, list[tuple[str, str]], str]:
    """Rows; for each leaf where it ends, if it is an array, and who has a gradient.

    The last is a line about all losses.
    """
    losses = checked_losses(fun, has_aux)
    values, _, rows = (of_groups if groups else of_all)(losses, arranged)
    names = loss_names(values, groups)
    told = ends_of_tasks(losses, arranged, groups)
    texts = [(_end(each, names), _note(each, names)) for each in told]
    return rows, texts, f"rows of {len(names)} losses: {', '.join(names)}"


def loss_names(values: Any, groups: bool = False) -> list[str]:
    """What the losses are called, in the order of their rows."""
    if isinstance(values, Mapping):
        flat, _ = jax.tree_util.tree_flatten_with_path(values)
        return [jax.tree_util.keystr(path) for path, _ in flat]
    return [f"[{i}]" for i in range(values.shape[1 if groups else 0])]


def _end(told: TaskEnd, names: list[str]) -> str:
    """Where an array ends, for each loss if they differ."""
    ends = [end for _, end in told.parts]
    every = list(dict.fromkeys(ends))
    if not every:
        return "zero"
    if len(every) == 1:
        products = all(x.split()[0] in _PRODUCTS for x in every[0].split(" + "))
        return every[0] + (_NO_LARGER if products else "")
    of = [f"{end} of {_some(tasks, names)}" for tasks, end in sorted(told.parts)]
    return ", ".join(dict.fromkeys(of))


_PRODUCTS = ("dot_general", "scatter-add")
_NO_LARGER = (
    ", which is no larger multiplied out, or of terms that losses lay out otherwise"
)


def _note(told: TaskEnd, names: list[str]) -> str:
    """Which losses have a gradient, if not all."""
    if len(told.tasks) == len(names):
        return ""
    if not told.tasks:
        return "; no loss depends on it"
    return f"; {_some(told.tasks, names)}"


def _some(tasks: Sequence[int], names: list[str]) -> str:
    return " and ".join(names[task] for task in tasks)
