"""What the rows of one loss show of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from consensus_optax._gradients.arguments import positions
from consensus_optax._gradients.examples import ForgottenAxis
from consensus_optax._gradients.per_example import per_example_grad
from consensus_optax._typing import Tree
from consensus_optax.diagnostics._drawn import draws_alike


class Looked(NamedTuple):
    """What one loss shows.

    Attributes:
      findings: sentences.
      dead: parameters without a gradient in it.
      rows: its rows as arrays, or None where they cannot be computed.
    """

    findings: list[str]
    dead: list[str]
    rows: Tree


def looked_at(fun: Callable[..., Any], call: tuple[Any, ...], options: Any) -> Looked:
    """Rows and the gradient of the batch of one loss, and what is wrong with them."""
    has_aux, argnums = options.get("has_aux", False), options.get("argnums", 0)
    try:
        numbers = positions("argnums", argnums, len(call))
        own = numbers if isinstance(argnums, Sequence) else numbers[0]
        rows, doubts = _rows_and_doubts(fun, call, options)
        whole, traced = None, as_traced(call, options)
        if options.get("keep_batch_dim", True):
            whole = jax.grad(fun, own, has_aux)(*traced)
            whole = whole[0] if has_aux else whole
        random = draws_alike(fun, traced, options)
        repeated, _ = _rows_and_doubts(fun, _equal_examples(call, options), options)
    except (TypeError, ValueError) as error:
        return Looked([f"The rows cannot be computed. {error}"], [], None)
    lost, dead = _zero(rows, whole)
    findings = [*not_finite(rows), *lost]
    if whole is not None and not findings and not random:
        findings += _not_the_mean(rows, whole)
    if random and _all_equal(repeated):
        findings.append(
            "The loss draws random numbers, but rows of equal examples are equal, so "
            "every row draws the same (one dropout mask for all). Make the key an "
            "argument of the loss and name it by `prng_argnum`."
        )
    return Looked(doubts + findings, dead, rows)


def _rows_and_doubts(
    fun: Callable[..., Any], call: tuple[Any, ...], options: Any
) -> tuple[Tree, list[str]]:
    """The rows as arrays, without aux, and what :func:`per_example_grad` warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        given: Any = {**options, "materialize": True}
        rows = per_example_grad(fun, **given)(*call)
    doubts = [str(x.message) for x in caught if x.category is ForgottenAxis]
    for other in caught:
        if other.category is not ForgottenAxis:  # the loss's own
            warnings.warn_explicit(
                other.message, other.category, other.filename, other.lineno
            )
    return (rows[0] if options.get("has_aux", False) else rows), doubts


def differentiated(call: tuple[Any, ...], options: Any) -> Tree:
    """What the rows are gradients of."""
    argnums = options.get("argnums", 0)
    several = [call[i] for i in positions("argnums", argnums, len(call))]
    return tuple(several) if isinstance(argnums, Sequence) else several[0]


def as_traced(call: tuple[Any, ...], options: Any) -> tuple[Any, ...]:
    """The arguments that the loss sees: of one example, where it sees no batch axis.

    And one key, where each row has its own.
    """
    if options.get("prng_argnum") is not None:
        (place,) = positions("prng_argnum", options["prng_argnum"], len(call))
        keys = call[place]
        typed = jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
        one = keys if keys.ndim == (0 if typed else 1) else keys[0]
        call = (*call[:place], one, *call[place + 1 :])
    if options.get("keep_batch_dim", True):
        return call
    return _mapped(lambda x: jnp.asarray(x)[0], call, options)


def _equal_examples(call: tuple[Any, ...], options: Any) -> tuple[Any, ...]:
    """The arguments with the first example in every place of the batch."""
    repeat = lambda x: jnp.broadcast_to(jnp.asarray(x)[:1], jnp.shape(x))
    return _mapped(repeat, call, options)


def _mapped(
    change: Callable[[Any], Any], call: tuple[Any, ...], options: Any
) -> tuple[Any, ...]:
    """The arguments with the arrays of examples changed."""
    named = options.get("batch_argnums", 1)
    batched = positions("batch_argnums", named, len(call))
    return tuple(
        jax.tree.map(change, argument) if position in batched else argument
        for position, argument in enumerate(call)
    )


def named(tree: Tree) -> list[tuple[str, np.ndarray]]:
    """Leaves as float64 arrays, with their paths."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    wide = lambda leaf: np.asarray(jnp.asarray(leaf, jnp.float32), np.float64)
    return [(jax.tree_util.keystr(path) or "(root)", wide(leaf)) for path, leaf in flat]


def not_finite(rows: Tree) -> list[str]:
    bad = [
        f"{name} of row {int(i)}"
        for name, leaf in named(rows)
        for i in np.flatnonzero(~np.isfinite(leaf.reshape(len(leaf), -1)).all(1))
    ]
    return [f"Not finite: {some(bad)}. Such rows do not count."] if bad else []


def _zero(rows: Tree, whole: Tree) -> tuple[list[str], list[str]]:
    """What is said of parameters that the batch moves and no row does; dead ones."""
    every = named(rows)
    of_batch = dict(named(whole)) if whole is not None else {}
    zero = [name for name, leaf in every if leaf.size and not leaf.any()]
    lost = [name for name in zero if name in of_batch and of_batch[name].any()]
    findings = []
    if lost:
        findings.append(
            f"Exactly zero in all rows, but not for the batch: {some(lost)}. "
            "A loss that normalizes by, or compares, the examples of a batch does this "
            "to a batch of one: normalize by groups or layers, freeze the statistics, "
            "or raise `group_size`."
        )
    return findings, [name for name in zero if name not in lost]


def _not_the_mean(rows: Tree, whole: Tree) -> list[str]:
    """Compares the gradient of the batch with mean and sum of the rows."""
    apart: list[str] = []
    summed = True
    types = [leaf.dtype for leaf in jax.tree.leaves(rows)]
    coarse = any(jnp.finfo(dtype).bits < 32 for dtype in types)
    tolerance = 5e-2 if coarse else 1e-3  # a few roundings of the model's arithmetic
    for (name, leaf), (_, full) in zip(named(rows), named(whole), strict=True):
        size = np.sqrt((leaf**2).reshape(len(leaf), -1).sum(1)).mean()
        if np.linalg.norm(leaf.mean(0) - full) > tolerance * size:
            apart.append(name)
            gap = np.linalg.norm(leaf.sum(0) - full)
            summed &= bool(gap <= tolerance * size * len(leaf))
    if not apart:
        return []
    if summed:
        return [
            "The gradient of the batch is the sum of the rows, not their mean: the "
            "loss adds examples up. Let it return the mean, or expect updates smaller "
            "by the number of rows."
        ]
    return [
        f"The mean of the rows is not the gradient of the batch: {some(apart)}. The "
        "loss mixes examples (batch normalization, contrastive terms, a weighted "
        "mean), so its rows are gradients of another loss."
    ]


def _all_equal(rows: Tree) -> bool:
    leaves = [leaf for _, leaf in named(rows)]
    return all(len(leaf) > 1 and (leaf == leaf[:1]).all() for leaf in leaves)


def some(names: list[str]) -> str:
    """The first few of many names."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
