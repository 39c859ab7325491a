"""One error grammar for every static argument: what it must be, and what it is."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from consensus_optax._typing import Array, Threshold


def fail(name: str, requirement: str, value: Any, hint: str = "") -> None:
    """Raises the one sentence that every bad argument gets."""
    raise ValueError(f"`{name}` must be {requirement}; got {value!r}{hint}")


def state(given: Any, call: str) -> None:
    """Raises unless given the state of a reducer."""
    if not hasattr(given, "rule_state"):
        found = "none" if given is None else f"a {type(given).__name__}"
        raise ValueError(
            f"`state` must be what the reducer's `init(params)` or its last update "
            f"gave; got {found}. Call `{call}`."
        )


def interval(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
    schedule: bool = True,
) -> None:
    """Checks low <= value <= high; schedules and traced values pass unchecked.

    Schedules are no values where no steps are counted.
    """
    if isinstance(value, jax.core.Tracer) or (schedule and callable(value)):
        return
    left, right = "(" if open_low else "[", ")" if open_high else "]"
    requirement = f"in {left}{low:g}, {high:g}{right}"
    kinds = f"a number {requirement}{' or a schedule' * schedule}"
    if isinstance(value, bool) or not isinstance(
        value, int | float | np.number | np.ndarray | jax.Array
    ):
        fail(name, kinds, value)
    number = np.asarray(value)
    if number.ndim:
        fail(name, kinds, value)
    above = number > low if open_low else number >= low
    below = number < high if open_high else number <= high
    if not (above and below):
        fail(name, requirement, float(number))


def static_number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, **ends: bool
) -> None:
    """Checks a number that fixes shapes or counts: no schedule and no tracer."""
    if callable(value) or isinstance(value, jax.core.Tracer):
        fail(name, "a number known when traced, since it fixes counts", value)
    interval(name, value, low, high, **ends)


def axis_names(name: str, value: Any) -> tuple[str, ...]:
    """Checks that a value names a mesh axis, or several; gives them all."""
    several = (value,) if isinstance(value, str) else value
    are_names = isinstance(several, Sequence) and len(several) > 0
    if not are_names or not all(isinstance(axis, str) for axis in several):
        fail(name, "the name of a mesh axis, or several", value)
    return tuple(several)


def one_of(name: str, value: Any, choices: Collection[str]) -> None:
    """Checks that a string option is one of its choices; suggests the nearest."""
    words = [*map(str, choices)]
    if isinstance(value, str) and value in words:
        return
    close = difflib.get_close_matches(value, words, 1) if isinstance(value, str) else ()
    hint = f". Did you mean {close[0]!r}?" if close else ""
    fail(name, f"one of {', '.join(map(repr, words))}", value, hint)


def function(name: str, value: Any, *arguments: str) -> None:
    """Checks that a value can be called with these arguments, as far as it tells."""
    wanted = f"a function of ({', '.join(arguments)})"
    if not callable(value):
        fail(name, wanted, value)
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # some builtins do not tell
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        raise ValueError(f"`{name}` must be {wanted}; got one of {signature}") from None


def known_words(given: Collection[str], ours: Collection[str]) -> None:
    """Checks that no keyword is a misspelt one of ours.

    Others pass, since a chain hands the same keywords to all its parts; ``value`` and
    whatever else optax reads is never meant to be ours.
    """
    for name in given:
        if name in ours or name in _OPTAX_WORDS:
            continue
        meant = difflib.get_close_matches(name.lower(), ours, 1, _LOOKS_LIKE)
        if meant:
            raise ValueError(
                f"`{name}` is no keyword of `update`; did you mean `{meant[0]}`?"
            )


# Of optax's line searches, plateau reduction and microbatching.
_OPTAX_WORDS = ("value", "grad", "value_fn", "loss")
_LOOKS_LIKE = 0.8  # one letter wrong, missing or exchanged in `values`


def optimizer(name: str, value: Any) -> None:
    """Checks that a value is an optax transformation."""
    if not isinstance(value, optax.GradientTransformation):
        fail(name, "an optax transformation, such as `optax.adam(1e-3)`", value)


def key(name: str, value: Any) -> None:
    """Checks one random key, a typed or a legacy one; traced ones, too."""
    dtype = getattr(value, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    legacy = dtype == jnp.uint32
    if not (typed or legacy) or value.ndim != (0 if typed else 1):
        fail(name, "one random key, as `jax.random.key(0)` makes it", value)


def flag(name: str, value: Any) -> None:
    """Checks a static True or False."""
    if not isinstance(value, bool | np.bool_):
        fail(name, "True or False, known when traced", value)


def array(name: str, value: Any, wanted: str, hint: str = "") -> Array:
    """What holds numbers as an array: a tree of rows, or text, does not."""
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError):
        found = type(value).__name__
        raise ValueError(f"`{name}` must be {wanted}; got a {found}{hint}") from None


def count(name: str, value: Any, minimum: int = 1) -> None:
    """Checks a static integer: counts fix shapes, so no schedule and no tracer."""
    if isinstance(value, jax.Array):
        fail(
            name,
            "a Python int, since it fixes shapes (with `optax.inject_hyperparams`, "
            f"list {name!r} in `static_args`)",
            value,
        )
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        fail(name, "an integer", value)
    if value < minimum:
        fail(name, f"at least {minimum}", value)


def one_of_counts(name: str, value: Any, choices: Sequence[int]) -> None:
    """Checks a static integer that is one of a few."""
    count(name, value)
    if value not in choices:
        fail(name, " or ".join(map(str, choices)), value)


def enough_rows(name: str, value: float, count: int, minimum: int, bound: str) -> None:
    """Checks, when traced, that a stack of ``count`` rows is what a bound asks for."""
    if count < minimum:
        raise ValueError(
            f"`{name}` must leave {bound}, so with {name}={value} at least {minimum} "
            f"rows are needed; got {count}"
        )


def row_index(name: str, index: int, count: int) -> None:
    """Checks, when traced, that a stack of ``count`` rows has a row of this index."""
    if index >= count:
        fail(name, f"less than the number of rows, {count}", index)


def rows_expected(num_rows: int, count: int) -> None:
    """Checks, when traced, that a stack has as many rows as a state was made for."""
    if count != num_rows:
        raise ValueError(
            f"`num_rows` must be the number of rows of the stack; got {num_rows}, but "
            f"the rows are {count}. Pad with rows of weight 0, or make the rule anew."
        )


def value_at(threshold: Threshold, step: Array, dtype: Any) -> Array:
    """The number that a threshold or schedule has at this step, in the given dtype."""
    value = threshold(step) if callable(threshold) else threshold
    return jnp.asarray(value).astype(dtype)
