"""In the place of ``jax_privacy.clipped_grad``: the same sum, of factored rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from consensus_optax import _check
from consensus_optax._gradients.arguments import Argnums, arranger
from consensus_optax._gradients.batch_axes import with_batch_axis
from consensus_optax._rows import verbs
from consensus_optax._rows.explicit import freed
from consensus_optax._rows.stack import checked_weights
from consensus_optax._rows.trees import arrays_of
from consensus_optax._rules.kinds import Reads
from consensus_optax._rules.roster import AllRows
from consensus_optax._running.memory import Memory
from consensus_optax._running.source import Asked
from consensus_optax._typing import Array, Tree
from consensus_optax.engines.microbatches.batches import (
    Block,
    Microbatches,
    row_indices,
)
from consensus_optax.engines.microbatches.combining import summed
from consensus_optax.privacy._installed import installed
from consensus_optax.weightings._clipping import Clipping

_LEAST = 1e-30  # of automatic clipping, where rows are to become directions


def clipped_grad(
    fun: Callable[..., Any],
    argnums: Argnums = 0,
    has_aux: bool = False,
    *,
    l2_clip_norm: float,
    rescale_to_unit_norm: bool = False,
    normalize_by: float = 1.0,
    batch_argnums: Argnums = 1,
    keep_batch_dim: bool = True,
    return_values: bool = False,
    return_grad_norms: bool = False,
    pre_clipping_transform: Callable[[Tree], Tree] | None = None,
    microbatch_size: int | None = None,
    nan_safe: bool = True,
    dtype: Any = None,
    prng_argnum: int | None = None,
    spmd_axis_name: str | None = None,
) -> Any:
    r"""``jax_privacy.clipped_grad`` with rows that are not multiplied out.

    .. math:: u = \frac1d \sum_i g_i \min(1, C / \|g_i\|)

    What it returns is theirs, a ``BoundedSensitivityCallable``: with its
    ``sensitivity()`` for a neighbouring relation, and fit for their noise, their matrix
    factorizations, accountants and auditing.

    Guarantees: :func:`consensus_optax.clipped_sum`'s. Sums are in float32 at least.
    What it differs in:

    1. The sensitivity holds in floating point, so the sum is shorter by the 1e-5 or so
       that rounding might add; norms that are returned are rounded up.
    2. A row that is not finite in any entry counts as zero, whatever ``nan_safe`` says;
       theirs replaces entries.
    3. Keys of ``prng_argnum`` are folded by the number of the row.
    4. Microbatches need not divide the batch.

    Args:
      fun: the loss of a batch of one example, or of one example.
      argnums: what to differentiate.
      has_aux: whether ``fun`` returns (value, aux).
      l2_clip_norm: C >= 0; inf for no clipping, and no sensitivity.
      rescale_to_unit_norm: whether the sum is divided by C as well.
      normalize_by: d > 0.
      batch_argnums: which arguments have the example axis.
      keep_batch_dim: whether ``fun`` sees a batch axis.
      return_values: whether values of all rows are returned; they are not private.
      return_grad_norms: whether norms of all rows are, before clipping.
      pre_clipping_transform: a function of the gradient of one row, before clipping;
        rows are multiplied out for it.
      microbatch_size: rows at a time.
      nan_safe: read by no one; see above.
      dtype: of the sum, the parameters' if None.
      prng_argnum: which argument is a random key.
      spmd_axis_name: mesh axis along which rows lie, as for ``jax.vmap``.

    Returns:
      A ``jax_privacy.clipping.BoundedSensitivityCallable`` of ``fun``'s arguments, and
      of ``is_padding_example``, (B,) bool. It gives the sum, or (sum,
      ``AuxiliaryOutput``) where something else is asked for.

    Raises:
      ValueError: an argument is out of range, or of ``argnums`` one is batched.
      ImportError: ``jax_privacy`` is not installed.

    Cost: one pass over the rows, factored as by :func:`consensus_optax.clipped_sum`.

    Examples:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, x: 0.5 * jnp.mean((x - w) ** 2)
      >>> grad = clipped_grad(loss, l2_clip_norm=2.0)  # doctest: +SKIP
      >>> grad(3.0, jnp.array([0., 7., 2.])), grad.sensitivity()  # doctest: +SKIP
      (Array(1., dtype=float32), 2.0)
    """
    clipping = installed("jax_privacy.clipping", "jax_privacy")
    del nan_safe
    _check.interval("normalize_by", normalize_by, 0, open_low=True)
    if microbatch_size is not None:
        _check.count("microbatch_size", microbatch_size)
    if not set(_several(argnums)).isdisjoint(_several(batch_argnums)):
        raise ValueError(
            f"`argnums` and `batch_argnums` must not overlap; got {argnums} and "
            f"{batch_argnums}"
        )
    if not _several(batch_argnums):
        _check.fail("batch_argnums", "one argument at least", batch_argnums)
    how = _clipping(l2_clip_norm, rescale_to_unit_norm)
    finish = lambda total, own: (total / normalize_by).astype(dtype or own)
    arrange = arranger(
        argnums, batch_argnums, keep_batch_dim, 1, prng_argnum, spmd_axis_name
    )

    def of_row(*args: Any, **kwargs: Any) -> Any:
        returned = fun(*args, **kwargs)
        value, aux = returned if has_aux else (returned, None)
        return value, (value, aux)

    def clipped(
        *args: Any, is_padding_example: Array | None = None, **kwargs: Any
    ) -> Any:
        arranged = arrange(args)
        there = None
        if is_padding_example is not None:
            there = jnp.where(is_padding_example, 0.0, 1.0)
        own = functools.partial(of_row, **kwargs)

        def summed(args: Any, there: Any) -> Any:
            freely, count = arranged.freed(args), arranged.num_rows
            params = arrays_of(freely.differentiated(freely.args))
            weights = checked_weights(there, count, verbs.decision_dtype(params))
            indices = row_indices(count, min(microbatch_size or count, count))
            micro = Microbatches(own, True, freely, params, weights, indices)
            return _summed(micro, how, pre_clipping_transform, finish)

        given = arranged.given, there
        grads, (value, norms) = freed(summed, given, PartitionSpec())
        if not asked:
            return grads
        _, (values, aux) = with_batch_axis(own, arranged, True, value)
        return grads, clipping.AuxiliaryOutput(
            values=values if return_values else None,
            grad_norms=norms if return_grad_norms else None,
            aux=aux if has_aux else None,
        )

    asked = has_aux or return_values or return_grad_norms
    bound = (1.0 if rescale_to_unit_norm else l2_clip_norm) / normalize_by
    return clipping.BoundedSensitivityCallable(clipped, bound, asked)


def _summed(
    micro: Microbatches,
    how: Clipping,
    transform: Callable[[Tree], Tree] | None,
    finish: Callable[[Array, Any], Array],
) -> tuple[Tree, Any]:
    """What is made of the sum of all rows in one pass; and what there is by row.

    Args:
      micro: the rows.
      how: they are clipped.
      transform: what is done to each before.
      finish: (sum, dtype of the rows) to what is wanted of a leaf.
    """
    treedef = jax.tree.structure(micro.params)
    of = AllRows(micro.arranged.num_rows, micro.weights.sum())
    dtypes: list[Tree] = []

    def part(block: Block) -> tuple[Tree, Any]:
        own = leaves = block.stack.leaves
        structure = treedef
        if transform is not None:
            arrays = [verbs.as_array(leaf, leaf.dtype) for leaf in own]
            rows = jax.vmap(transform)(jax.tree.unflatten(treedef, arrays))
            leaves, structure = jax.tree.flatten(rows)
        dtypes[:] = [jax.tree.unflatten(structure, [leaf.dtype for leaf in leaves])]
        seen = block.source.seen
        squares, source = Memory(leaves, seen).inner(Asked(Reads.NORM_BOUNDS))
        limit = how.norm_at(seen.roster.step, squares.dtype)
        weights, _ = how.weights(squares, seen.roster._replace(of=of), limit)
        if transform is not None:
            squares, _ = Memory(own, seen).inner(Asked(Reads.NORM_BOUNDS))
        sums = jax.tree.unflatten(structure, source.combine(weights))
        return sums, (block.value, jnp.sqrt(squares))

    total, kept = summed(micro, part)
    return jax.tree.map(finish, total, dtypes[0]), micro.in_order(kept)


def _clipping(max_norm: Any, rescale: bool) -> Clipping:
    """To C, or to C and then to 1; C = 0 leaves directions of the latter."""
    _check.interval("l2_clip_norm", max_norm, 0)
    if not rescale:
        return Clipping(max_norm, 1.0, "threshold", _LEAST, False)
    if max_norm == 0:
        return Clipping(1.0, 1.0, "automatic", _LEAST, False)
    return Clipping(max_norm, max_norm, "threshold", _LEAST, False)


def _several(argnums: Argnums) -> tuple[int, ...]:
    return tuple(argnums) if isinstance(argnums, Sequence) else (argnums,)
