"""What a factory makes prints as the call that made it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

from consensus_optax._rules.kinds import Mixing, Scaling

P = ParamSpec("P")
Made = TypeVar("Made")


def named(factory: Callable[P, Made]) -> Callable[P, Made]:
    """Gives what a factory makes the text of the call, without defaults.

    Args:
      factory: a function that makes a reducer or a mixing.

    Returns:
      The same function, its signature and docstring too.

    Examples:
      >>> import consensus_optax as co
      >>> co.among(co.cosine_filter(0.5), co.sign_consensus(quorum=0.8))
      among(cosine_filter(max_distance=0.5), sign_consensus(quorum=0.8))
    """

    @functools.wraps(factory)
    def make(*args: P.args, **kwargs: P.kwargs) -> Made:
        return _with_text(factory(*args, **kwargs), _call(factory, args, kwargs))

    return make


def _with_text(made: Any, text: str) -> Any:
    if isinstance(made, Mixing | Scaling):
        return made._replace(text=text)
    made.text = text
    return made


def _call(factory: Callable[..., Any], args: Any, kwargs: Any) -> str:
    """Such as ``krum(2, num_selected=3)``: what has a default is named, or left out."""
    signature = inspect.signature(factory)
    given = signature.bind(*args, **kwargs).arguments
    texts: list[str] = []
    for name, value in given.items():
        parameter = signature.parameters[name]
        default = parameter.default
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            texts += map(_shown, value)
        elif default is inspect.Parameter.empty:
            texts.append(_shown(value))
        elif not _same(value, default):
            texts.append(f"{name}={_shown(value)}")
    return f"{getattr(factory, '__name__', '')}({', '.join(texts)})"


def _same(value: Any, default: Any) -> bool:
    plain = isinstance(value, bool | int | float | str)
    return value is default or (plain and value == default)


def _shown(value: Any) -> str:
    """A short text; an array has none, and to print one would wait for a device."""
    if isinstance(value, jax.Array | np.ndarray):
        return "..."
    text = repr(value)
    if "<" in text or "\n" in text:  # as of functions and objects
        text = str(getattr(value, "__name__", "..."))
    return text if "<" not in text else "..."
