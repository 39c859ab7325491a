"""Value and reduced gradient of a batch, in memory or microbatch by microbatch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from consensus_optax import _check
from consensus_optax._gradients.arguments import Argnums, Arranged, arranger
from consensus_optax._gradients.batch_axes import with_batch_axis
from consensus_optax._gradients.per_example import value_and_rows
from consensus_optax._rows.explicit import Explicit, automatic, explained, freed
from consensus_optax._rows.stack import as_stack, checked_weights
from consensus_optax._rows.trees import arrays_of, floating_leaves
from consensus_optax._rows.verbs import decision_dtype
from consensus_optax._rules.kinds import WORDS
from consensus_optax._running.reducer import (
    Reducer,
    finished,
    rule_of,
    with_checked_target,
)
from consensus_optax._running.run import run
from consensus_optax._typing import Array, AxisName
from consensus_optax.engines.backward.choice import comes_by_turns, is_dealt, is_held
from consensus_optax.engines.backward.passes import Batch
from consensus_optax.engines.backward.source import Backward
from consensus_optax.engines.mesh.aggregator import Sharded
from consensus_optax.engines.microbatches.batches import Microbatches, row_indices
from consensus_optax.engines.microbatches.source import Computed


def value_and_reduced_grad(
    fun: Callable[..., Any],
    reducer: Reducer | Sharded,
    argnums: Argnums = 0,
    *,
    batch_argnums: Argnums = 1,
    has_aux: bool = False,
    keep_batch_dim: bool = True,
    group_size: int = 1,
    num_rows: int | None = None,
    prng_argnum: int | None = None,
    spmd_axis_name: AxisName | None = None,
    microbatch_size: int | None = None,
    hold_rows: bool | None = None,
) -> Callable[..., Any]:
    r"""Like ``jax.value_and_grad``, with a reducer in place of the mean.

    The rows are those of :func:`per_example_grad`, the update is what ``reducer`` makes
    of them; how many rows are computed at a time changes memory and time, never the
    answer (beyond rounding).

    ========= ============================ ========================================
    rule      ``microbatch_size=None``     k microbatches of m rows
    ========= ============================ ========================================
    fold      rows held, factored          one pass, the parameters' memory
    weighting Gramian, then one product    (k + 3) / 2 passes for the Gramian (one for
                                           norms, none for nothing; twice for distances
                                           of nearly equal rows), one to combine; but
                                           one in all where each row decides its weight
    columns   one leaf at a time           the stack (B, P) is held, activations of m
    ========= ============================ ========================================

    Each row decides its weight in :func:`mean`, :func:`normalized_mean`,
    :func:`clipped_sum` and :func:`private_sum`, and in any :class:`Weighting` that says
    so (``apart``): rows are combined as they come, whoever turns out to be sound.
    Weights that hang on losses alone, as of :func:`keep_smallest_losses`, take a
    forward pass ahead, here and below.

    Without microbatches rows are held where that takes little. Factors of T terms are
    larger than the rows that they multiply to once T is about half of a layer's width,
    as in language models, and B rows of all layers then take more than all else in a
    step. So they are reduced inside of the backward pass: in the body of a ``lax.scan``
    over layers, or between layers written one after the other, a leaf is folded, or
    inner products are taken, as soon as it is there. For a fold, and a weighting that
    reads no gradient such as ``mean``, that is one pass, and one more in a step in
    which a row turns out to be non-finite; another weighting looks, a second time where
    rows are nearly equal, or too long or short to be squared, and combines, each in a
    pass of its own, so it takes up to twice the time (three times). Clipping ahead of a
    rule looks as well, but in microbatches, where it is done as rows come. Columns see
    all rows of one layer at a time, in one pass. Rows are mixed in each pass that looks
    at them afterwards. Held as ever is what is added up before it is whole, weights
    that are used in several places or in every step of a recurrence; so are all rows
    inside of ``shard_map`` by mixings and by rules that deal rows out.

    With :func:`sharded` it is called inside ``jax.shard_map``, on the examples of the
    device; value, update and state are those of all. Microbatches then are the
    device's: folds, and weightings of norms or of nothing, hold and send what they do
    above; other rules deal rows out as they come, and hold B / N rows of P numbers.
    Or it is called under ``jax.jit`` on axes that cut the batch, as models are whose
    parameters are cut along the same axes (FSDP), or along others. Automatic and
    explicit axes cost the same: along the latter ``fun`` is traced, with what it says
    of how results are cut, and the rest is done as along the former. Rows that are
    reduced inside of the backward pass then are dealt out layer by layer, an all-to-all
    in place of the mean's reduce-scatter: B / N rows of one layer, and all rows of its
    Nth part, are all that a device holds of them. They travel in the dtype of the
    model's own gradient, or in ``wire_dtype``, and are rounded to it. Of several rows
    on a device a combination, or a fold's statistics, travel in their place where they
    are less, in the dtype of decisions. Rows that are held where most factors would be
    larger are dealt out in the pass that makes them, too, and stay there: a weighting
    then needs one pass, the operations and bytes of the plain step, and the memory of
    B / N rows. Microbatches there are those of the whole mesh, m rows of all devices:
    folds, and weightings of norms or of nothing, hold what the parameters do, other
    rules B / N rows of P numbers where they are dealt to, in one pass.

    Args:
      fun: see :func:`per_example_grad`; so are all arguments not named here.
      reducer: any reducer of this library, not a chain; or :func:`sharded` of one.
      argnums: what to differentiate.
      batch_argnums: which arguments have the example axis.
      has_aux: whether ``fun`` returns (value, aux).
      keep_batch_dim: whether ``fun`` sees a batch axis.
      group_size: how many examples make one row. It changes the answer.
      num_rows: how many rows there are, instead.
      prng_argnum: which argument is a random key.
      spmd_axis_name: mesh axes that cut the rows.
      microbatch_size: rows computed at a time, None for all. It need not divide B, but
        with a sharded reducer under ``jax.jit``.
      hold_rows: without microbatches, whether rows are held while the rule looks at
        them (True), or reduced inside of the backward pass (False). None: held if that
        takes at most four times the bytes of the parameters, or 256 MiB.

    Returns:
      A function ``reduced(*args, state, weights=None, extra=None, **kwargs)`` that
      gives (value, update, state), or ((value, aux), update, state): the value is the
      weighted mean over the rows that are there, aux is that of
      :func:`per_example_grad`. ``state`` comes from ``reducer.init(params)``;
      ``weights`` are those of the reducer's ``update``, ``extra`` a dict of its other
      keywords, such as ``target``. Rules that read losses find them as ``values``,
      unless ``extra`` has its own; ``kwargs`` are the loss's.

    Raises:
      ValueError: as :func:`per_example_grad` and the reducer do. On explicit axes an
        error of JAX in ``fun``, which asks how a result is to be cut, has a note.

    Examples:
      >>> import jax.numpy as jnp, consensus_optax as co
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2)
      >>> step = co.value_and_reduced_grad(loss, co.sign_consensus(), microbatch_size=2)
      >>> x, w = jnp.array([[1., 0.], [2., 1.], [1., 1.]]), jnp.ones(2)
      >>> value, update, state = step(w, x, state=co.sign_consensus().init(w))
      >>> print(round(float(value), 4), update)
      4.6667 [2. 0.]
    """
    on_mesh = isinstance(reducer, Sharded)
    rule = reducer.rule if on_mesh else rule_of("reducer", reducer)
    of_all = reducer.of_all_rows if on_mesh else lambda own: own
    arrange = arranger(
        argnums,
        batch_argnums,
        keep_batch_dim,
        group_size,
        prng_argnum,
        spmd_axis_name,
        num_rows=num_rows,
    )
    if microbatch_size is not None:
        _check.count("microbatch_size", microbatch_size)
    if hold_rows is not None:
        _check.flag("hold_rows", hold_rows)
    if hold_rows is not None and microbatch_size is not None:
        _check.fail("hold_rows", "None with `microbatch_size`", hold_rows)

    def is_to_be_held(batch: Batch) -> bool:
        if hold_rows is None:
            computes = reducer.computes if on_mesh else True
            return not computes or is_held(rule, batch, on_mesh and reducer.inside)
        return hold_rows

    @explained
    def reduced(
        *args: Any,
        state: Any = None,
        weights: Array | None = None,
        extra: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        _check.state(state, "reduced(params, batch, state=state)")
        arranged = arrange(args).gathered()
        params = arrays_of(arranged.differentiated(args))
        if weights is not None:  # once, for an error before anything is traced
            checked_weights(weights, arranged.num_rows, decision_dtype(params))
        words = dict(extra or {})
        _check.known_words(words, WORDS)
        words = with_checked_target(words, params)
        losses = lambda value: value[0] if has_aux else value
        deals = on_mesh and reducer.deals
        of_row = functools.partial(fun, **kwargs)

        def of_batch(value: Any, update: Any, new: Any) -> Any:
            return with_batch_axis(of_row, arranged, has_aux, value), update, new

        def mean_of(value: Any, weights: Any, own: Arranged) -> Any:
            given = checked_weights(weights, own.num_rows, decision_dtype(params))
            of_rows = of_all(losses(value)), of_all(own.varying(given))
            mean = automatic(_mean, of_rows, PartitionSpec())
            return (mean, value[1]) if has_aux else mean

        size = microbatch_size if floating_leaves(params) else arranged.num_rows
        in_turn = size is not None and size < arranged.num_rows
        turns, keeps = 1, False
        if in_turn and deals:
            turns, rest = divmod(arranged.num_rows, size)
            if rest:
                wanted = f"a divisor of the number of rows, {arranged.num_rows}, "
                wanted += "with a sharded reducer under `jax.jit`"
                _check.fail("microbatch_size", wanted, size)
            keeps = not comes_by_turns(rule)
        elif not in_turn:
            batch = Batch(of_row, has_aux, arranged, params)
            held = size is not None or is_to_be_held(batch)
            keeps = size is None and held and deals and is_dealt(rule, batch)
            if held and not keeps:
                value, rows = value_and_rows(of_row, arranged, has_aux)
                words = {"values": losses(value), **(extra or {})}
                given = {"weights": weights, **words}
                update, new = reducer.update(rows, state, params, **given)
                return of_batch(mean_of(value, weights, arranged), update, new)

        def in_passes(given: Any, weights: Any, state: Any, words: Any) -> Any:
            """What comes out of rows that are computed when they are looked at."""
            own = arranged.freed(given)
            params = arrays_of(own.differentiated(own.args))
            checked = checked_weights(weights, own.num_rows, decision_dtype(params))
            if in_turn and not deals:
                indices = row_indices(own.num_rows, size)
                micro = Microbatches(of_row, has_aux, own, params, checked, indices)
                local = Computed.of(micro, state.step, words)
            else:
                batch = Batch(of_row, has_aux, own, params, turns=turns)
                local = Backward.of(batch, checked, state.step, words, keeps)
            stack = as_stack(jax.tree.map(_one_row, params), params)
            source = reducer.source(local, lie) if on_mesh else local
            outcome, source = run(rule, source, state.rule_state)
            leaves, new = finished(stack, outcome, source.seen, state)
            leaves, new = reducer.laid(leaves, new, lie) if on_mesh else (leaves, new)
            mean = mean_of(source.seen.value, weights, own)
            return mean, stack.rebuild(leaves), new

        lie = reducer.specs(params) if on_mesh else []
        value_spec = (PartitionSpec(), arranged.cut) if has_aux else PartitionSpec()
        specs = value_spec, Explicit.of(params).specs, Explicit.of(state).specs
        given = arranged.given, weights, state, words
        return of_batch(*freed(in_passes, given, specs))

    return reduced


def _one_row(param: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *param.shape), param.dtype)


def _mean(values: Array, weights: Array) -> Array:
    """Weighted mean of the finite values of rows that are there; nan if none is."""
    weights = jnp.where(jnp.isfinite(values) & (weights > 0), weights, 0)
    present = jnp.where(weights > 0, values, 0).astype(weights.dtype)
    shares = weights / weights.sum()  # first, for their products fit wherever rows do
    return jnp.sum(shares * present).astype(values.dtype)
