"""Is this loss one whose per-example gradients mean what they seem to?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from consensus_optax import _check
from consensus_optax._gradients.arguments import shared_by_all
from consensus_optax._gradients.task_rows import checked_losses
from consensus_optax._running.reducer import Reducer, rule_of
from consensus_optax._typing import Tree
from consensus_optax.diagnostics._explain_tasks import loss_names
from consensus_optax.diagnostics._loss_findings import (
    as_traced,
    differentiated,
    looked_at,
    named,
    not_finite,
    some,
)
from consensus_optax.diagnostics._own_terms import has_own_term
from consensus_optax.diagnostics._starved import starved


def check_per_example(
    fun: Callable[..., Any],
    params: Tree,
    *args: Any,
    reducer: Reducer | None = None,
    tasks: bool = False,
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

    Of several losses (:func:`task_grad`) it says so of each, by name, and besides which
    of them depend on no parameter. That a loss has no gradient in another one's head is
    no finding.

    Guarantees: raises nothing of its own: where no rows can be computed, the reason is
    the finding. No finding is no proof.

    Args:
      fun: loss, as for :func:`per_example_grad`: ``fun(params, batch, ...)``.
      params: parameters, of floating leaves.
      *args: the other arguments of ``fun``: a small batch (two rows or more), and for
        instance a key.
      reducer: the rule that the rows are for.
      tasks: whether ``fun`` returns several losses, as for :func:`task_grad`.
      **options: those of :func:`per_example_grad`.

    Returns:
      Findings, a list of sentences; empty if all is well.

    Cost: four gradients of the batch, nothing compiled; rows are multiplied out. Of
    several losses that for each.

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
    _check.flag("tasks", tasks)
    try:
        given, whole = shared_by_all((params, *args), options.get("argnums", 0))
    except (TypeError, ValueError) as error:
        return [f"The rows cannot be computed. {error}"]
    fun, call = given.of_modules(fun), tuple(whole)
    if tasks:
        return _of_tasks(fun, call, options)
    looked = looked_at(fun, call, options)
    findings = list(looked.findings)
    if looked.rows is None:
        return findings
    if looked.dead:
        findings.append(f"{_DEAD}: {some(looked.dead)}. Does the loss depend on it?")
    if has_own_term(fun, as_traced(call, options), options):
        findings.append(
            "The loss adds a term of the parameters alone, such as an L2 penalty: each "
            "row has its whole gradient, which counts as agreement wherever the rest "
            "is near zero. Leave a penalty out and decay weights after the reducer, by "
            "`optax.adamw` or `optax.add_decayed_weights`."
        )
    if not not_finite(looked.rows):
        findings += starved(looked.rows, differentiated(call, options), reducer)
    return findings


_DEAD = "Exactly zero in all rows"


def _of_tasks(
    fun: Callable[..., Any], call: tuple[Any, ...], options: Any
) -> list[str]:
    """The findings of every loss, and what none of them depends on.

    Rows are losses here, so neither a penalty is one of the wrong kind, nor are there
    too many.
    """
    has_aux = options.get("has_aux", False)
    try:
        losses = checked_losses(fun, has_aux)
        values = jax.eval_shape(lambda: losses(*call)[0])
    except (TypeError, ValueError) as error:
        return [f"The rows cannot be computed. {error}"]
    findings: list[str] = []
    unused: list[set[str]] = []
    every = {name for name, _ in named(differentiated(call, options))}

    for place, name in enumerate(loss_names(values)):

        def loss(*args: Any, place: int = place) -> Any:
            returned = fun(*args)
            own: Any = returned[0] if has_aux else returned
            flat = jax.tree.leaves(own)  # of a dict; a vector is one leaf
            own = flat[place] if isinstance(own, Mapping) else own[place]
            return (own, returned[1]) if has_aux else own

        looked = looked_at(loss, call, options)
        findings += [f"Loss {name}: {finding}" for finding in looked.findings]
        unused.append(set(looked.dead))
        if unused[-1] == every:
            findings.append(f"Loss {name} has no gradient: it depends on no parameter.")
    dead = sorted(set.intersection(*unused))
    if dead and set(dead) != every:
        findings.append(f"{_DEAD}: {some(dead)}. Does any loss depend on it?")
    return findings
