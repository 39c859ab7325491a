"""A reducer on a mesh: every device has some rows, all get the same update."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec

from consensus_optax import _check
from consensus_optax._rows.explicit import Explicit, freed
from consensus_optax._rows.stack import (
    Stack,
    as_stack,
    checked_weights,
    present_weights,
)
from consensus_optax._rows.trees import arrays_of
from consensus_optax._rules.kinds import WORDS, Roster, Rule
from consensus_optax._running.memory import Memory
from consensus_optax._running.named import named
from consensus_optax._running.reducer import (
    Reducer,
    finished,
    rule_of,
    with_checked_target,
)
from consensus_optax._running.run import map_previous, run
from consensus_optax._running.source import Seen
from consensus_optax._typing import Array, AxisName, Tree
from consensus_optax.compressors._compressor import Compressor
from consensus_optax.engines.mesh.aggregator import Sharded
from consensus_optax.engines.mesh.entering import entering
from consensus_optax.engines.mesh.exchange import Exchange
from consensus_optax.engines.mesh.layout import Stay
from consensus_optax.engines.mesh.source import Shared
from consensus_optax.engines.mesh.specs import (
    check_inside,
    check_varying,
    is_inside,
    manual,
    mesh_of,
    place,
    specs_of,
    spread_of,
    stays,
    without,
)
from consensus_optax.engines.mesh.wire import Wire, reads_signs, update_dtype


@named
def sharded(
    reducer: Reducer,
    axis_name: AxisName,
    *,
    mesh: Any = None,
    param_specs: Tree = None,
    wire: Compressor | None = None,
    update_wire: Compressor | None = None,
    wire_dtype: Any = None,
    per_row: tuple[str, ...] = ("values",),
) -> optax.GradientTransformation:
    r"""A reducer on many devices: the same update, for the bytes of one all-reduce.

    Rows are dealt out as coordinates: an all-to-all leaves every one of the N devices
    with all rows of P / N coordinates. Folds and columns are finished there; a
    weighting sums its partial Gramian, B x B numbers, over the devices, weighs, and
    combines its coordinates. One all-gather of the update ends it. On the wire of a
    device, with one row on each:

    .. math:: \frac{N - 1}{N} P + \frac{N - 1}{N} P

    numbers, as a ring all-reduce of the mean has, whatever the rule.

    ================================ ================================================
    rule                             numbers that a device sends, L rows on each
    ================================ ================================================
    fold of k statistics             min(k P, R) for the rows, P for the update
    weighting of norms or of nothing min(P, R) for what it combined, P for the update
    other weighting, columns, mixing R for the rows, P for the update
    ================================ ================================================

    times (N - 1) / N, and B x B numbers (for every leaf, where each decides for itself;
    three times where rows are nearly equal). R is L P for arrays. Rows of factors, of
    one leaf T outer products of M by K each, send whichever is least of

    .. math:: L M K, \quad L T (N M + K), \quad L T (M + N K)

    multiplied out; or one factor dealt out and all of the other sent to every device,
    which then has products again, of some columns or lines of the matrix. Of a look-up
    M is 1 in the second; in the third, of a table whose lines ``param_specs`` cut along
    ``axis_name``, it is N. Every layer has its own T. What N does not divide is filled
    up: by at most N numbers, or of a matrix N columns or lines, which count when it is
    decided. Rows travel in their dtype, and so does every
    device's part of a combination, which of rows narrower than float32 is rounded once
    for that; updates in their parameter's, signs in int8 where a rule reads nothing
    else. A rule that remembers its last update sends it in float32.

    Works in two places. Inside ``jax.shard_map``, with ``check_vma`` or without, rows
    are those of the device, a leading axis of one or more, ``weights`` and whatever
    ``per_row`` names likewise; parameters and state are whole, and so is the update.
    Elsewhere, eagerly or under ``jax.jit``, rows are all rows, sharded along
    ``axis_name`` by their leading axis, and a ``shard_map`` over ``mesh`` is opened
    here: for automatic and for explicit axes.

    Guarantees:
      - equals ``reducer`` on the rows of all devices, in the order of the axis (of
        several: the first one is the slowest), then of the device, to rounding; so
        does the state;
      - all devices get the same update bit for bit, whatever a row holds;
      - rows with an inf or a nan, and rows of weight 0, say of a worker that is late or
        broken, count nowhere.

    Edge cases: one device: the reducer itself. A device without any row that counts
    takes part all the same. Outer products are multiplied out just before they are
    dealt out in microbatches, where ``wire_dtype`` rounds them, and where an explicit
    axis cuts their parameter; where statistics or a combination travel they never are.

    Args:
      reducer: any reducer of this library; compose first, ``co.sharded(co.among(...),
        "data")``.
      axis_name: mesh axis, or axes, that the rows are sharded along.
      mesh: outside of ``shard_map``, the mesh; None for that of ``jax.set_mesh``.
      param_specs: how parameters are sharded along other mesh axes, as ``in_specs``
        tells ``shard_map``: ``PartitionSpec`` leaves, one for a whole subtree allowed.
        Inner products are then summed over these axes as well. None: as explicit axes
        say, else whole. May name ``axis_name`` too outside of ``shard_map``: the update
        of a parameter of which they cut one axis, alone or inside of what other mesh
        axes leave of it, stays where it is made, which saves the P of the update; and
        rows that :func:`value_and_reduced_grad` reduces inside of the backward pass are
        dealt out along whichever axis is cut so.
      wire: a compressor of ``co.compressors``, in whose messages rows travel, each leaf
        in N pieces that are compressed by themselves: the update is that of
        ``co.compressed(co.compressors.bucketed(wire, count=N))``, decided and summed in
        float32. Of ``low_rank`` rows travel as its products, made of whole matrices.
        A sparse one is an error for what compares rows coordinate by coordinate.
        What is lost of a row is kept by ``co.error_feedback`` of the same ahead.
      update_wire: a compressor of entries, in whose messages the update travels back;
        one that a rule remembers does in float32 all the same.
      wire_dtype: a floating dtype in which rows and update travel, if theirs is wider.
        The update is then that of the rounded rows, decided and summed in float32, and
        rounded: 2 P bytes each way with ``jnp.bfloat16``, for a relative error of
        2**-8 in every entry of every row and of the update. What overflows in it is a
        non-finite row. ``jnp.int8`` is for rules that read signs alone: for those it is
        exact, and what they do without being asked.
      per_row: which keyword arguments of ``update`` have one entry for every row.

    Returns:
      An aggregator as any reducer is, first in ``optax.chain`` or given to
      :func:`value_and_reduced_grad`, with the reducer's state, which is independent of
      the number of devices: arrays like the parameters lie as these do, and all else is
      the same on all devices.

    Raises:
      ValueError: ``reducer`` is none of this library, ``wire_dtype`` is no such dtype,
        ``wire`` or ``update_wire`` no compressor or not one for it; when traced: the
        axis is not there; inside ``shard_map`` with ``check_vma`` all devices have the
        same rows, as ``jax.grad`` gives them; and as the reducer does.

    Examples:
      >>> import jax, jax.numpy as jnp, consensus_optax as co
      >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
      >>> rule, params = sharded(co.median(), "data", mesh=mesh), jnp.zeros(2)
      >>> rows = jnp.tile(jnp.array([[1., -2.]]), (jax.device_count(), 1))
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [1.0, -2.0]
    """
    rule = rule_of("reducer", reducer)
    axes = _check.axis_names("axis_name", axis_name)
    how = Wire.checked(wire_dtype, wire, update_wire, rule, reducer)

    def update(
        updates: Tree,
        state: Any = None,
        params: Tree | None = None,
        *,
        weights: Array | None = None,
        **extra: Any,
    ) -> tuple[Tree, Any]:
        _check.state(state, "update(rows, state, params)")
        _check.known_words(extra, (*WORDS, *per_row))
        params = arrays_of(params)
        stack = as_stack(updates, params)
        if not stack.leaves:
            return reducer.update(updates, state, params, **extra)
        specs = specs_of(params, param_specs)
        weights = checked_weights(weights, stack.num_rows, stack.dtype)
        extra = with_checked_target(extra, params)
        named = {name: extra.pop(name) for name in per_row if name in extra}
        across = functools.partial(_update, rule, axes, how, stack)
        if is_inside(axes):
            check_inside(specs, axes)
            check_varying(stack.leaves, axes)
            across = functools.partial(across, list(map(manual, specs)), None)
            given = stack.leaves, weights, named, extra, state
            lie = Explicit.of((list(stack.params), state))
            update, new = freed(across, given, lie.specs)
            return stack.rebuild(update), new
        where = mesh_of(mesh, axes)
        inner = [without(spec, axes) for spec in specs]
        whole, by_row = PartitionSpec(), PartitionSpec(axes)
        told = map_previous(lambda _: inner, rule, state.rule_state)
        is_told = lambda x: x if isinstance(x, PartitionSpec) else whole
        of_state = jax.tree.map(is_told, state._replace(rule_state=told))
        pairs = zip(stack.leaves, inner, strict=True)
        rows = [entering(leaf, axes, spec, where) for leaf, spec in pairs]
        of_extra = {name: inner if name == "target" else whole for name in extra}
        in_specs = ([x.specs for x in rows], by_row, by_row, of_extra, of_state)
        pairs = zip(rows, specs, strict=True)
        still = [
            stays(x.part, spec, axes, where, reads_signs(rule)) for x, spec in pairs
        ]
        triples = zip(still, specs, inner, strict=True)
        lie = [inner if own is None else spec for own, spec, inner in triples]

        def inside(given: list[Any], *rest: Any) -> tuple[list[Array], Any]:
            pairs = zip(rows, given, strict=True)
            return across(inner, still, [x.inside(own) for x, own in pairs], *rest)

        mapped = jax.shard_map(
            inside, mesh=where, in_specs=in_specs, out_specs=(lie, of_state)
        )

        @jax.jit  # eagerly every operation would be sent to the devices by itself
        def run(*given: Any) -> tuple[list[Array], Any]:
            update, new = mapped(*place(given, in_specs, where))
            lie = lambda kept: place(kept, specs, where)  # as the parameters
            kept = map_previous(lie, rule, new.rule_state)
            return lie(update), new._replace(rule_state=kept)

        update, new = run([x.given for x in rows], weights, named, extra, state)
        return stack.rebuild(update), new

    # optax names the first argument per_elt_updates; every caller passes it by position
    face = Sharded(reducer.init, update)  # pyrefly: ignore[bad-argument-type]
    face.rule, face.axes = rule, axes
    face.mesh, face.wire, face.param_specs = mesh, how, param_specs
    face.per_row = tuple(per_row)
    face.plain = how.is_plain and param_specs is None
    return face


def _update(
    rule: Rule,
    axes: tuple[str, ...],
    wire: Wire,
    stack: Stack,
    specs: list[PartitionSpec],
    still: list[Stay | None] | None,
    leaves: list[Any],
    weights: Array,
    named: dict[str, Any],
    extra: dict[str, Any],
    state: Any,
) -> tuple[list[Array], Any]:
    """What one device does, inside ``shard_map``: its rows to the update."""
    triples = zip(leaves, specs, still or [None] * len(leaves), strict=True)
    spreads = [spread_of(leaf.shape[1:], spec, own) for leaf, spec, own in triples]
    exchange = Exchange(axes, spreads)
    leaves = wire.ready(leaves, reads_signs(rule))

    def everywhere(finite: Array) -> Array:
        bad = (~finite).astype(jnp.int32)
        cut = exchange.cut_along
        return lax.psum(bad, cut) == 0 if cut else finite

    local = stack._replace(leaves=leaves, num_rows=leaves[0].shape[0])
    weights, num_bad = present_weights(local, weights, everywhere)
    roster = Roster(weights, state.step, {**extra, **named}, like=stack.like)
    seen = Seen(roster, num_bad)
    leaves = wire.factored(leaves, exchange, weights > 0, state.step)
    dtypes = [update_dtype(param.dtype, wire.dtype) for param in stack.params]
    source = Shared.of(exchange, Memory(leaves, seen), dtypes, tuple(named), wire)
    outcome, source = run(rule, source, state.rule_state)
    seen = source.seen
    if exchange.stays:
        outcome = outcome._replace(update=exchange.slabs(outcome.update))
        roster = seen.roster._replace(coordinates=exchange.of_blocks(dtypes))
        seen = seen._replace(roster=roster)
    return finished(stack, outcome, seen, state)
