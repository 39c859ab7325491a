"""Row transformations and a reducer as one reducer."""

from __future__ import annotations

from typing import Any

import optax

from consensus_optax._rules.kinds import After, Mixing, Scaling, Step
from consensus_optax._rules.steps import is_apart
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._running.row_transform import RowTransform


@named
def chain(*parts: RowTransform | Mixing | Scaling | Reducer) -> Reducer:
    r"""Row transformations, then a reducer: one reducer, wherever its rows come from.

    .. math:: u = R(T_k(\dots T_1(g)))

    ``optax.chain`` of the same parts is a pair of functions, into which nobody can see:
    it takes rows in memory alone. This is a rule like any other:
    :func:`value_and_reduced_grad` runs it in microbatches and inside of the backward
    pass, :func:`sharded` on a mesh, and no row is held for it. What follows the
    reducer stays outside: ``optax.chain(co.chain(...), optax.adam(1e-3))``.

    Guarantees: of rows in memory the update is that of ``optax.chain`` of the same
    parts, to the rounding of sums in another order; so are ``num_present`` and
    ``num_nonfinite``: a row that a transformation cannot keep, say for a norm that
    overflows, is excluded and counted. Inner products that :func:`probe` has looked at
    are not computed again for the next part.
    Between parts rows are in the dtype of decisions, float32 at least: nothing is
    rounded on the way, wherever rows come from. ``optax.chain`` hands every part an
    ordinary tree of rows, in their own dtype: rows of bfloat16, as arrays, are rounded
    to it after each of its parts, and its update differs by that.
    Edge cases: those of the parts. A reducer alone: that reducer.
    ``weights``: 0 = absent for every part; else as each of them says.

    Args:
      *parts: :func:`clip_examples`, :func:`normalize_examples`,
        :func:`scale_examples`, :func:`probe`, :func:`row_momentum` (in memory alone),
        mixings as for :func:`after`, and at the end a reducer, which may be a chain.

    Returns:
      A :class:`Reducer`; in its state ``rule_state`` is a pair for every part before
      the last, ``step_state`` and ``rule_state``. ``sensitivity`` is the reducer's, if
      no part lets one row change another.

    Raises:
      ValueError: a part is none of these, or the reducer is not at the end; it adds
        noise, and a part lets rows change each other; when traced, as the parts do.

    Cost: that of the parts. Of rows that are computed when they are looked at, every
    part that reads norms or inner products takes a pass of its own; but in microbatches
    clipping and normalizing are done as rows come, and so are means and clipped sums.

    Examples:
      >>> import jax.numpy as jnp, consensus_optax as co
      >>> rule = co.chain(co.clip_examples(1.0), co.sign_consensus())
      >>> rows, params = jnp.array([[3., 4.], [1., .25]]), jnp.zeros(2)
      >>> update, state = rule.update(rows, rule.init(params), params)
      >>> [round(float(x), 2) for x in update]
      [0.6, 0.24]
      >>> state.rule_state.step_state.scaled_share.item()
      1.0
    """
    if not parts:
        raise ValueError("`parts` must end with a reducer; got none")
    *steps, last = parts
    rule = _reducer(last).rule
    sensitivity = _reducer(last).sensitivity
    for place, part in reversed(list(enumerate(steps, 1))):
        step = _step(place, part)
        rule = After(step, rule)
        sensitivity = sensitivity if is_apart(step) else None
    made = reducer(rule)
    made.sensitivity = sensitivity
    return made


def _reducer(part: Any) -> Reducer:
    """The last part."""
    if isinstance(part, Reducer):
        return part
    optimizer = isinstance(part, optax.GradientTransformation)
    after = " What follows a reducer stays outside: `optax.chain(co.chain(...), ...)`."
    raise ValueError(
        "The last of `parts` must be a reducer of this library; got "
        f"{_found(part)}.{after if optimizer else ''}"
    )


def _step(place: int, part: Any) -> Step:
    """What a part before the last does to rows."""
    if isinstance(part, RowTransform):
        return part.first
    if isinstance(part, Mixing | Scaling):
        return part
    hint = ""
    if isinstance(part, optax.GradientTransformation):
        hint = (
            " It is a pair of functions, which need rows as arrays in memory, as "
            "`co.on_rows` does: there `optax.chain` of the same parts serves. Scales "
            "are `co.scale_examples` and `co.clip_examples`."
        )
    if isinstance(part, Reducer):
        hint = " A reducer gives no rows for another part; it stands at the end."
    raise ValueError(
        f"Part {place} of `parts` must be a row transformation of this library or a "
        f"mixing; got {_found(part)}.{hint}"
    )


def _found(part: Any) -> str:
    named = isinstance(part, RowTransform | Mixing | Scaling | Reducer)
    return repr(part) if named else f"a {type(part).__name__}"
