"""Is this loss one whose per-example gradients mean what they seem to?"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from consensus_optax._gradients.arguments import positions, shared_by_all
from consensus_optax._gradients.examples import ForgottenAxis
from consensus_optax._gradients.per_example import per_example_grad
from consensus_optax._running.reducer import Reducer, rule_of
from consensus_optax._typing import Tree
from consensus_optax.diagnostics._own_terms import has_own_term
from consensus_optax.diagnostics._starved import starved

_RANDOM = ("random_bits", "random_gamma", "threefry2x32", "rng_bit_generator")


def check_per_example(
    fun: Callable[..., Any],
    params: Tree,
    *args: Any,
    reducer: Reducer | None = None,
    **options: Any,
) -> list[str]:
    """Looks for the usual reasons why per-example gradients are silently wrong.

    It computes rows and the gradient of the batch, and says in plain words:

      - which rows are not finite;
      - which parameters have exactly zero gradient in all rows: under batch
        normalization of a single example everything before it does;
      - whether the mean of the rows is not the gradient of the batch: the loss is a
        sum, or mixes examples (only told of a loss that draws no random numbers);
      - whether rows draw the same random numbers, such as one dropout mask for all;
      - whether an argument that all rows share has as many entries as the batch;
      - whether the loss adds a term of the parameters alone, such as an L2 penalty,
        whose gradient all rows share, so that it counts as agreement;
      - whether there are so many rows that hardly anything is agreed on: less than 1 %
        of the coordinates by ``reducer``; without one, in sign by all of 16 rows or
        more.

    Guarantees: raises nothing of its own: where no rows can be computed, the reason is
    the finding. No finding is no proof.

    Args:
      fun: loss, as for :func:`per_example_grad`: ``fun(params, batch, ...)``.
      params: parameters, of floating leaves.
      *args: the other arguments of ``fun``: a small batch (two rows or more), and for
        instance a key.
      reducer: the rule that the rows are for.
      **options: those of :func:`per_example_grad`.

    Returns:
      Findings, a list of sentences; empty if all is well.

    Cost: four gradients of the batch, nothing compiled; rows are multiplied out.

    Examples:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1., 2.], [3., 4.]])
      >>> check_per_example(lambda w, x: jnp.mean((x @ w) ** 2), jnp.ones(2), x)
      []
      >>> check_per_example(lambda w, x: jnp.sum((x @ w) ** 2), jnp.ones(2), x)
      ['The gradient of the batch is the sum of the rows, not their mean: ...']
    """
    if reducer is not None:
        rule_of("reducer", reducer)
    has_aux = options.get("has_aux", False)
    try:
        given, whole_call = shared_by_all((params, *args), options.get("argnums", 0))
        fun, call = given.of_modules(fun), tuple(whole_call)
        rows, doubts = _rows_and_doubts(fun, call, options)
        whole = None
        if options.get("keep_batch_dim", True):
            whole = jax.grad(fun, given.argnums, has_aux)(*call)
            whole = whole[0] if has_aux else whole
        traced = _as_traced(call, options)
        random = _draws(fun, traced)
        repeated, _ = _rows_and_doubts(fun, _equal_examples(call, options), options)
        penalty = has_own_term(fun, traced, options)
        differentiated = _differentiated(call, options)
    except (TypeError, ValueError) as error:
        return [f"The rows cannot be computed. {error}"]
    findings = [*_not_finite(rows), *_zero(rows, whole)]
    if whole is not None and not findings and not random:
        findings += _not_the_mean(rows, whole)
    if random and _all_equal(repeated):
        findings.append(
            "The loss draws random numbers, but rows of equal examples are equal, so "
            "every row draws the same (one dropout mask for all). Make the key an "
            "argument of the loss and name it by `prng_argnum`."
        )
    if penalty:
        findings.append(
            "The loss adds a term of the parameters alone, such as an L2 penalty: each "
            "row has its whole gradient, which counts as agreement wherever the rest "
            "is near zero. Leave a penalty out and decay weights after the reducer, by "
            "`optax.adamw` or `optax.add_decayed_weights`."
        )
    if not _not_finite(rows):
        findings += starved(rows, differentiated, reducer)
    return doubts + findings


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


def _differentiated(call: tuple[Any, ...], options: Any) -> Tree:
    """What the rows are gradients of."""
    argnums = options.get("argnums", 0)
    several = [call[i] for i in positions("argnums", argnums, len(call))]
    return tuple(several) if isinstance(argnums, Sequence) else several[0]


def _draws(fun: Callable[..., Any], call: tuple[Any, ...]) -> bool:
    """Whether random numbers are drawn, whichever way the key comes in."""
    program = str(jax.make_jaxpr(lambda: fun(*call))())
    return any(name in program for name in _RANDOM)


def _as_traced(call: tuple[Any, ...], options: Any) -> tuple[Any, ...]:
    """The arguments that the loss sees: of one example, where it sees no batch axis."""
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


def _named(tree: Tree) -> list[tuple[str, np.ndarray]]:
    """Leaves as float64 arrays, with their paths."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    wide = lambda leaf: np.asarray(jnp.asarray(leaf, jnp.float32), np.float64)
    return [(jax.tree_util.keystr(path) or "(root)", wide(leaf)) for path, leaf in flat]


def _not_finite(rows: Tree) -> list[str]:
    bad = [
        f"{name} of row {int(i)}"
        for name, leaf in _named(rows)
        for i in np.flatnonzero(~np.isfinite(leaf.reshape(len(leaf), -1)).all(1))
    ]
    return [f"Not finite: {_some(bad)}. Such rows do not count."] if bad else []


def _zero(rows: Tree, whole: Tree) -> list[str]:
    named = _named(rows)
    of_batch = dict(_named(whole)) if whole is not None else {}
    zero = [name for name, leaf in named if leaf.size and not leaf.any()]
    lost = [name for name in zero if name in of_batch and of_batch[name].any()]
    dead = [name for name in zero if name not in lost]
    findings = []
    if lost:
        findings.append(
            f"Exactly zero in all rows, but not for the batch: {_some(lost)}. "
            "A loss that normalizes by, or compares, the examples of a batch does this "
            "to a batch of one: normalize by groups or layers, freeze the statistics, "
            "or raise `group_size`."
        )
    if dead:
        findings.append(
            f"Exactly zero in all rows: {_some(dead)}. Does the loss depend on it?"
        )
    return findings


def _not_the_mean(rows: Tree, whole: Tree) -> list[str]:
    """Compares the gradient of the batch with mean and sum of the rows."""
    apart: list[str] = []
    summed = True
    types = [leaf.dtype for leaf in jax.tree.leaves(rows)]
    coarse = any(jnp.finfo(dtype).bits < 32 for dtype in types)
    tolerance = 5e-2 if coarse else 1e-3  # a few roundings of the model's arithmetic
    for (name, leaf), (_, full) in zip(_named(rows), _named(whole), strict=True):
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
        f"The mean of the rows is not the gradient of the batch: {_some(apart)}. The "
        "loss mixes examples (batch normalization, contrastive terms, a weighted "
        "mean), so its rows are gradients of another loss."
    ]


def _all_equal(rows: Tree) -> bool:
    leaves = [leaf for _, leaf in _named(rows)]
    return all(len(leaf) > 1 and (leaf == leaf[:1]).all() for leaf in leaves)


def _some(names: list[str]) -> str:
    """The first few of many names."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
