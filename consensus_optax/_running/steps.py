"""What is done to rows ahead of a rule, of whatever source they are."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp

from consensus_optax._rows import verbs
from consensus_optax._rules.arithmetic import with_all_digits
from consensus_optax._rules.distances import num_present
from consensus_optax._rules.kinds import (
    Known,
    Mixing,
    Probing,
    Reads,
    Remembering,
    Scaling,
    Step,
)
from consensus_optax._running.memory import Memory
from consensus_optax._running.products import (
    read_products,
    scale_read,
    without_overflow,
)
from consensus_optax._running.recalled import Recalled
from consensus_optax._running.source import Asked, Source, Unseen
from consensus_optax._typing import Array, Marked, Number, PerRow, Tree


class ScalingState(NamedTuple):
    """State of a scaling of rows.

    Attributes:
      scaled_share: () float32, share of the rows there that the last step made shorter.
    """

    scaled_share: Number


class Changed(NamedTuple):
    """Rows after a step.

    Attributes:
      source: they.
      matrix: (B', B) what they are made of where they have been mixed, else None.
      place: in ``seen.factors``, of a scaling that is done when rows are seen.
    """

    source: Source
    matrix: Array | None = None
    place: int | None = None

    def state_after(self, source: Source, state: Any) -> Any:
        """The step's state, once somebody has looked at the rows."""
        if self.place is None:
            return state
        factors = source.seen.factors[self.place]
        assert factors is not None
        return _scaling_state(factors, jnp.isfinite(factors))


class Scaled(NamedTuple):
    """What a scaling decides.

    Attributes:
      factors: (B,), or () for all rows, finite.
      sound: likewise bool, False where a row has none and is lost.
      state: the scaling's.
    """

    factors: PerRow | Number
    sound: Marked
    state: ScalingState


def init_step(step: Step, params: Tree, dtype: Any) -> Any:
    """The step's own state, of fixed shape and dtype."""
    match step:
        case Scaling():
            return ScalingState(jnp.zeros((), jnp.float32))
        case Probing() | Remembering():
            return step.init(params, dtype)
    return ()


def taken(step: Step, source: Source, state: Any) -> tuple[Changed, Source, Any]:
    """Rows after a step, the same before it, of which all is known, and its state."""
    match step:
        case Mixing():
            products, source = read_products(step, source)
            roster = source.seen.roster._replace(scale=scale_read(step, source))
            given, roster = without_overflow(products, roster, step.reads)
            with with_all_digits():
                matrix, weights = step.mix(given, roster)
            matrix = jnp.where(roster.present[None, :], matrix, 0)
            return Changed(source.mixed(matrix, weights), matrix), source, state
        case Scaling():
            alone = step.apart and step.reads != Reads.NOTHING
            if alone and isinstance(source, Unseen):
                later = source.scaled_when_seen(step)
                if later is not None:
                    return Changed(later, place=len(source.seen.factors)), source, state
            decided, source = decided_factors(step, source)
            known = step.reads != Reads.NOTHING
            scaled = source.scaled(decided.factors, decided.sound, known)
            return Changed(scaled), source, decided.state
        case Probing():
            source, state = probed(step, source, state)
            return Changed(source), source, state
    held = source.source if isinstance(source, Recalled) else source
    if not isinstance(held, Memory):
        raise ValueError(
            f"`{step.name}` keeps a memory of every row, so it takes rows that are in "
            "memory, on one device; here they are computed when they are looked at, or "
            "dealt out. Leave `microbatch_size`, `hold_rows=False` and `co.sharded` "
            f"out, or `{step.name}`."
        )
    roster = held.seen.roster
    leaves = [
        verbs.as_array(leaf, roster.weights.dtype)
        if isinstance(leaf, verbs.Mixed)
        else leaf
        for leaf in held.leaves
    ]
    rows, state = step.replace(leaves, roster, state)
    return Changed(held._replace(leaves=rows)), held, state


def decided_factors(step: Scaling, source: Source) -> tuple[Scaled, Source]:
    """Every row's number; a row whose squared norm is not finite is lost."""
    if step.reads == Reads.NOTHING:  # nor is anything to be found out for it
        roster = source.seen.roster
        factors = step.factors(None, roster)
        sound = jnp.isfinite(factors)
        share = (factors < 1).astype(jnp.float32)
        return Scaled(jnp.where(sound, factors, 1), sound, ScalingState(share)), source
    products, source = read_products(step, source)
    roster = source.seen.roster._replace(scale=scale_read(step, source))
    given, kept = without_overflow(products, roster, step.reads)
    with with_all_digits():
        factors = step.factors(given, kept)
    if step.degree:  # of a row of zeros it stays what it is: factors are no zeros
        again = factors * jnp.asarray(roster.scale, factors.dtype) ** -step.degree
        factors = jnp.where(given > 0, again, factors)
    there = kept.present & jnp.isfinite(factors)
    factors = jnp.where(there, factors, 1)
    sound = there | ~roster.present
    return Scaled(factors, sound, _scaling_state(factors, there)), source


def _scaling_state(factors: Array, there: Array) -> ScalingState:
    """The state after a step that has multiplied the rows there."""
    count = jnp.maximum(num_present(there), 1).astype(jnp.float32)
    return ScalingState(jnp.sum(there & (factors < 1), dtype=jnp.float32) / count)


def probed(step: Probing, source: Source, state: Any) -> tuple[Source, Any]:
    """The rows, whose products a rule need not ask for again, and the new state."""
    reads = Reads(step.reads)
    products, source = source.inner(Asked(reads, per_leaf=True))
    roster = source.seen.roster
    squares = products if reads == Reads.NORMS else _diagonals(products)
    chosen = step.leaves(roster.like)
    looked = functools.reduce(jnp.add, [squares[i] for i in chosen])
    _, kept = without_overflow(looked, roster, Reads.NORMS)
    of_mean = mean = None
    if reads == Reads.NORMS:
        mean = source.combine(kept.shares)
        of_mean = jnp.stack(roster.coordinates.sums([leaf * leaf for leaf in mean]))
    known = Known(products, of_mean, kept.weights, roster.step, roster.like)
    recalled = Recalled(source, products)
    if mean is not None and len(chosen) == len(mean):  # else for some leaves alone
        recalled = recalled._replace(mean=mean, shares=kept.shares)
    with with_all_digits():
        return recalled, step.observe(known, state)


def _diagonals(products: Array) -> Array:
    return jnp.diagonal(products, axis1=-2, axis2=-1)
