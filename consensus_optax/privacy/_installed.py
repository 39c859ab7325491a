"""Packages that only some functions need."""

from __future__ import annotations

import importlib
from typing import Any


def installed(module: str, package: str) -> Any:
    """A module of an optional package.

    Raises:
      ImportError: it is not installed; says how to.
    """
    root = module.partition(".")[0]
    try:
        importlib.import_module(root)
    except ModuleNotFoundError as error:
        if error.name != root:  # it is, but not whole
            raise
        raise ImportError(
            f"`{package}` is needed here and not installed: pip install {package}, or "
            'pip install "consensus_optax[privacy]"'
        ) from error
    return importlib.import_module(module)
