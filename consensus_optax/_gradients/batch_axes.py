"""What of a loss belongs to its batch, told by tracing it for one of another length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from consensus_optax._gradients.arguments import Arranged
from consensus_optax._gradients.constraints import RowsAxis
from consensus_optax._gradients.dependence import Tasks, reached, tasks_of
from consensus_optax._gradients.jaxprs import CALLS, inner_of
from consensus_optax._gradients.leaves import is_array
from consensus_optax._rows.explicit import joined

_BATCH, _KEY = Tasks([0]), Tasks([1])


def with_batch_axis(
    fun: Callable[..., Any], arranged: Arranged, has_aux: bool, value: Any
) -> Any:
    """What all rows returned, with the batch's own axis in aux where it has the row's.

    A leaf that leads with the row's examples, (R, g, ...), leads with those of the
    batch instead, (B, ...), in their order: for rows of one example that is (B, ...)
    rather than (B, 1, ...). Any other leaf leads with the axis of rows.

    Args:
      fun: of a row, to (value, aux) with ``has_aux``.
      arranged: the arguments of all rows.
      has_aux: whether there is aux.
      value: of all rows.
    """
    size = arranged.rows_axis.group_size
    if not has_aux or size is None:
        return value
    losses, aux = value
    leads = lambda leaf, length: leaf.shape[:1] == (length,)
    of_row = lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    here = jax.tree.map(of_row, aux)
    if not any(leads(leaf, size) for leaf in jax.tree.leaves(here)):
        return value
    found = _shapes(fun, arranged, size + 1)
    # A loss that takes no other length: what has the row's is taken for the batch's.
    there, other = (here, size) if found is None else (found[1], size + 1)

    def of_batch(leaf: Any, here: Any, there: Any) -> Any:
        is_batch = leads(here, size) and leads(there, other)
        return joined(leaf, 0, 2) if is_batch else leaf

    return losses, jax.tree.map(of_batch, aux, here, there)


def watched(fun: Callable[..., Any], arranged: Arranged) -> RowsAxis:
    """The axis of rows, which raises if the loss turns out closed over its batch.

    Guarantees: a loss that reads its own examples, and whatever is no batch, is not
    refused.
    """
    axis, lie = arranged.rows_axis, arranged.lie
    names = tuple(name for name in axis.names if name not in lie.axes)  # types tell
    axis = axis._replace(names=names, explicit=lie)
    if arranged.num_examples == (axis.group_size or 1):
        return axis  # one row, of all

    def look(closed: Any, args: Sequence[Any]) -> None:
        """Looks at the jaxpr of one row, to (value, ...), and its arguments."""
        given: list[Tasks] = []
        for position, arg in zip(arranged.traced, args, strict=True):
            own = _BATCH if position in arranged.batched else _KEY
            own = own if arranged.in_axes[position] == 0 else Tasks()
            given += [own] * len(jax.tree.leaves(arg))
        value = closed.jaxpr.outvars[0]
        known = reached(closed.jaxpr, given, inside_calls=True)
        read = tasks_of(value, known)
        whole = _of_all_examples(_consts(closed.jaxpr, closed.consts), arranged)
        if not read or (whole and not read & _BATCH):
            raise ValueError(
                f"`fun` does not read its batch, so all rows are the same. {_ADVICE}"
            )
        if whole and _takes_all_or_one(fun, arranged):
            raise ValueError(
                f"`fun` takes a batch of {arranged.num_examples} examples and, as "
                "broadcasting hides, of 1, but none of other lengths: it is closed "
                f"over something of all examples, such as labels. {_ADVICE}"
            )

    return axis._replace(look=look)


_ADVICE = (
    "A loss that is closed over its batch sees all of it in every row. Let all of it "
    "be an argument: `def loss(params, batch): ...`, and `rows_of(params, batch)`."
)


def _consts(jaxpr: Any, consts: Sequence[Any]) -> Iterator[Any]:
    """What a program is closed over, its calls too."""
    yield from consts
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in CALLS:
            yield from _consts(*inner_of(eqn))


def _of_all_examples(consts: Iterable[Any], arranged: Arranged) -> bool:
    """Whether any of these has an entry for every example, and is not known to."""
    leads = lambda leaf: jax.numpy.shape(leaf)[:1] == (arranged.num_examples,)
    return any(map(leads, consts))


def _takes_all_or_one(fun: Callable[..., Any], arranged: Arranged) -> bool:
    """Whether a loss of one example takes all examples, and no other number of them.

    What is handed over beside the batch, by keyword too, has warnings of its own.
    """
    if arranged.rows_axis.group_size != 1:
        return False
    traced = set(arranged.traced)
    shared = [arg for i, arg in enumerate(arranged.args) if i not in traced]
    keywords = getattr(fun, "keywords", {})
    handed = [leaf for leaf in jax.tree.leaves((shared, keywords)) if is_array(leaf)]
    if _of_all_examples(handed, arranged):
        return False
    length = arranged.num_examples
    others = [other for other in (2, 3) if other != length]
    takes = lambda length: _shapes(fun, arranged, length) is not None
    return takes(length) and not any(map(takes, others))


def _shapes(fun: Callable[..., Any], arranged: Arranged, length: int) -> Any:
    """Shapes of what it makes of so many examples; None if it takes no such batch."""

    def of_one(position: int) -> Any:
        arg, axis = arranged.args[position], arranged.in_axes[position]
        own = (length,) if position in arranged.batched else ()

        def of_leaf(leaf: Any) -> Any:
            shape = (*own, *leaf.shape[1 + len(own) :])
            return jax.ShapeDtypeStruct(shape, leaf.dtype)

        return arg if axis is None else jax.tree.map(of_leaf, arg)

    function, _, _ = arranged.without_shared(arranged.of_modules(fun))
    try:
        return jax.eval_shape(function, *map(of_one, arranged.traced))
    except Exception:  # whatever a loss raises where it does not take it
        return None
