"""Rows of several losses: one for each loss, of the batch or of every example."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from consensus_optax import _check
from consensus_optax._gradients.arguments import Argnums, arranger
from consensus_optax._gradients.batch_axes import with_batch_axis
from consensus_optax._gradients.per_example import without_value
from consensus_optax._gradients.task_rows import (
    checked_losses,
    in_turn,
    of_all,
    of_groups,
    of_one_call,
)
from consensus_optax._rows.explicit import explained
from consensus_optax._rows.outer_product import materialize as multiplied_out


def task_value_and_grad(
    fun: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    batch_argnums: Argnums = 1,
    has_aux: bool = False,
    keep_batch_dim: bool = True,
    group_size: int | None = None,
    num_rows: int | None = None,
    microbatch_size: int | None = None,
    prng_argnum: int | None = None,
    materialize: bool = False,
) -> Callable[..., Any]:
    """Like :func:`task_grad`, with the losses.

    Args:
      fun: see :func:`task_grad`; so are all other arguments.
      argnums: what to differentiate.
      batch_argnums: which arguments have the example axis.
      has_aux: whether ``fun`` returns (losses, aux).
      keep_batch_dim: whether ``fun`` sees a batch axis.
      group_size: how many examples make a row of each loss, None for all.
      num_rows: how many rows each loss has, instead.
      microbatch_size: how many examples are computed at a time, None for all.
      prng_argnum: which argument is a random key.
      materialize: whether to multiply all leaves out.

    Returns:
      A function of ``fun``'s arguments that gives (losses, rows), or ((losses, aux),
      rows) with ``has_aux``; losses as ``fun`` returns them, a vector or the same dict,
      with ``group_size`` or ``num_rows`` each with a leading axis of groups.

    Examples:
      >>> import jax.numpy as jnp
      >>> losses = lambda w, x: {"fit": jnp.mean((x @ w) ** 2), "size": jnp.sum(w**2)}
      >>> x = jnp.array([[1., 0.], [0., 2.]])
      >>> values, rows = task_value_and_grad(losses)(jnp.ones(2), x)
      >>> print(values["fit"], values["size"], rows.tolist())
      2.5 2.0 [[1.0, 4.0], [2.0, 2.0]]
    """
    _check.flag("materialize", materialize)
    _check.flag("has_aux", has_aux)
    grouped = {"group_size": group_size, "num_rows": num_rows}
    by = next((name for name, size in grouped.items() if size is not None), None)
    if by is not None and microbatch_size is not None:
        wanted = f"None with `{by}`, whose rows are of few examples each"
        _check.fail("microbatch_size", wanted, microbatch_size)
    of_rows = functools.partial(arranger, argnums, batch_argnums)
    if by is not None:
        size = 1 if group_size is None else group_size
        arrange = of_rows(keep_batch_dim, size, prng_argnum, num_rows=num_rows)
        evaluate = of_groups
    elif microbatch_size is not None:
        arrange = of_rows(True, microbatch_size, prng_argnum, size="microbatch_size")
        evaluate = in_turn
    else:
        arrange, evaluate = of_one_call(argnums), of_all

    @explained
    def rows_of(*args: Any, **kwargs: Any) -> Any:
        losses = checked_losses(functools.partial(fun, **kwargs), has_aux)
        arranged = arrange(args)
        values, aux, rows = evaluate(arranged.of_modules(losses), arranged)
        if by is not None:
            found = values, aux
            values, aux = with_batch_axis(losses, arranged, has_aux, found)
        rows = multiplied_out(rows) if materialize else rows
        return ((values, aux) if has_aux else values), rows

    return rows_of


def task_grad(
    fun: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    batch_argnums: Argnums = 1,
    has_aux: bool = False,
    keep_batch_dim: bool = True,
    group_size: int | None = None,
    num_rows: int | None = None,
    microbatch_size: int | None = None,
    prng_argnum: int | None = None,
    materialize: bool = False,
) -> Callable[..., Any]:
    r"""Gradients of several losses: one row for each.

    .. math:: g_k = \nabla_\theta\, f_k(\theta, \text{batch})

    One forward pass; the backward passes of all losses run under one ``jax.vmap`` from
    where they meet. Before that, in a head that one loss alone goes through, they are
    that loss's own, and its row is known to be zero for all others: two networks of one
    loss each cost what their gradients cost.

    Guarantees: row k is ``jax.grad`` of loss k, to rounding: the rows are
    ``jax.jacrev(fun)``, leaf by leaf. They come as those of :func:`per_example_grad`
    do, some as :class:`OuterProduct`, whose left factor all rows share where it comes
    from the forward pass: activations are held once. Every reducer takes them, with K
    for B.
    Edge cases: what no loss depends on has zero rows. A loss that is not finite spoils
    its own row, which reducers leave out and count, and not what other losses have from
    heads of their own; ``jax.jacrev`` gives nan to all. Heads are told apart where
    losses come in a dict, or in a vector that ``jnp.stack`` or ``jnp.array`` made of
    scalars: not in one that was calculated with, nor inside one ``jax.checkpoint``.

    Args:
      fun: several losses: a vector (K,), or a dict of K scalars, all floating; with
        ``has_aux`` a pair (losses, aux). Rows of a dict are in the order in which JAX
        has dicts, that of its sorted keys: ``jax.tree.leaves`` of another dict with the
        same keys gives ``weights`` in that order.
      argnums: argument or arguments to differentiate, as in ``jax.grad``; their leaves
        are floating arrays or numbers.
      batch_argnums: argument or arguments whose leaves lead with the example axis;
        read with one of the three sizes below.
      has_aux: whether ``fun`` returns (losses, aux); the gradient function then returns
        (rows, aux); of groups of examples aux is that of :func:`per_example_grad`.
      keep_batch_dim: with ``group_size`` 1: whether ``fun`` sees batches of one example
        or one example without a batch axis.
      group_size: None: K rows, of the losses of the batch. A number: a row for every
        loss of every ``group_size`` examples, K B of one example each; row i K + k is
        loss k of group i. Losses and aux then lead with the axis of groups.
      num_rows: rows of each loss, instead of ``group_size``: K times as many in all,
        each of B / num_rows examples that follow each other.
      microbatch_size: examples computed at a time: rows are means over microbatches,
        added in float32 at least; products stay so where the factors of all are smaller
        than the rows. It divides the number of examples.
        The losses must be means over the batch, for these means to be theirs; of a sum
        they are smaller by the number of microbatches. Aux has a leading axis of these.
      prng_argnum: with one of these sizes the argument that is a random key, see
        :func:`per_example_grad`: i counts groups or microbatches. The whole batch gets
        its key as it is.
      materialize: True gives arrays only; False may leave outer products.

    Returns:
      A function of ``fun``'s arguments that gives rows: a tree like the differentiated
      argument with (K, \*shape) leaves, or (K R, \*shape) of R groups of examples.

    Raises:
      ValueError: a static argument is wrong; when traced, ``fun`` returns no several
        floating losses, naming the key, and as :func:`per_example_grad` does.

    Preferences are the ``weights`` of the reducer's ``update``, K numbers; losses,
    where a rule reads them, its ``values``: ``jnp.stack(jax.tree.leaves(losses))``.

    Under plain ``jit`` on a mesh, ``fun``'s means are those of the whole batch, however
    it is sharded. Inside ``jax.shard_map`` rows are of the device's own examples; as
    ``lax.pmean(co.materialize(rows), axis_name)`` they are those of all, if every
    device has as many.

    Cost: the forward pass, K backward passes through what losses share, one through
    what they do not. Memory: without ``microbatch_size`` that of ``jax.jacrev`` at the
    most. With ``group_size`` each of the K rows of a group has left factors of its own,
    copies of the activations, and is combined by itself.

    References:
      Sener and Koltun, `Multi-task learning as multi-objective optimization
      <https://arxiv.org/abs/1810.04650>`_, 2018: rows for tasks.

    Examples:
      >>> import jax.numpy as jnp, consensus_optax as co
      >>> losses = lambda w, x: jnp.stack([jnp.mean(x @ w), jnp.mean((x @ w) ** 2)])
      >>> w, x = jnp.ones(2), jnp.array([[1., 0.], [0., 2.]])
      >>> rows = task_grad(losses)(w, x)
      >>> rows.tolist()
      [[0.5, 1.0], [1.0, 4.0]]
      >>> rule = co.mean()
      >>> update, _ = rule.update(rows, rule.init(w), w, weights=jnp.array([3., 1.]))
      >>> update.tolist()
      [0.625, 1.75]
    """
    value_and_grad = task_value_and_grad(
        fun,
        argnums,
        batch_argnums=batch_argnums,
        has_aux=has_aux,
        keep_batch_dim=keep_batch_dim,
        group_size=group_size,
        num_rows=num_rows,
        microbatch_size=microbatch_size,
        prng_argnum=prng_argnum,
        materialize=materialize,
    )

    return without_value(value_and_grad, has_aux)
