"""What messages call a user's functions and values."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any


def known_as(
    function: Callable[..., Any], traced: Sequence[int] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: in messages of JAX what is decorated goes by the function's name.

    So do its arguments; ``traced`` tells which of the function's they are, if not all.
    """
    named = function
    while isinstance(named, functools.partial):
        named = named.func

    def decorate(wrapper: Callable[..., Any]) -> Callable[..., Any]:
        wrapper = functools.update_wrapper(wrapper, named, updated=())
        parameters: list[inspect.Parameter] = []
        with contextlib.suppress(TypeError, ValueError):  # not written in Python
            parameters += inspect.signature(function).parameters.values()
        if traced is not None:
            names = [parameter.name for parameter in parameters]
            names += [f"argument_{i}" for i in range(len(names), max(traced) + 1)]
            kind = inspect.Parameter.POSITIONAL_ONLY
            parameters = [inspect.Parameter(names[i], kind) for i in traced]
        wrapper.__dict__["__signature__"] = inspect.Signature(parameters)
        return wrapper

    return decorate


def kind_of(value: Any) -> str:
    """What something is, for messages."""
    if hasattr(value, "dtype"):
        return f"an array of {value.dtype}"
    return repr(value) if isinstance(value, str) else f"of type {type(value).__name__}"
