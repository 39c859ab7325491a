"""Threads for what XLA does in one piece, so that Ctrl-C is heard meanwhile."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def compilers() -> ThreadPoolExecutor:
    """As many threads as are worth while: XLA compiles one program with few threads.

    Who leaves early calls ``shutdown(wait=False, cancel_futures=True)``.

    Returns:
      A pool of threads.

    Examples:
      >>> with compilers() as pool:
      ...     pool.submit(max, 1, 2).result()
      2
    """
    return ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 1)), "compile")


def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Calls a function in a thread of its own and waits for it.

    The main thread of Python sees no signal while it is inside of a compilation or
    waits for an array; while it waits for a thread it does. After ``KeyboardInterrupt``
    the function is not waited for.

    Args:
      function: what to call; it traces nothing, as jax's settings are a thread's own.
      *args: its arguments.

    Returns:
      What it returns, or raises.

    Examples:
      >>> in_thread(max, 1, 2)
      2
    """
    pool = ThreadPoolExecutor(1, "xla")
    try:
        return pool.submit(function, *args).result()
    finally:
        pool.shutdown(wait=False)
