"""How every report is written: Markdown tables, and JSON with what made it."""

import json
import math
import os
import platform
import re
from importlib import metadata
from typing import Any

import jax
import numpy as np

import consensus_optax as co
from consensus_optax.comparison._result import Estimate

_LONG = 1e5  # beyond, numbers have an exponent
PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy")


def environment() -> dict[str, Any]:
    """Versions and device, for JSON."""
    return {
        "versions": {
            "consensus_optax": co.__version__,
            **{name: metadata.version(name) for name in PACKAGES},
            "python": platform.python_version(),
        },
        "device": {
            "platform": jax.devices()[0].platform,
            "kind": jax.devices()[0].device_kind,
            "cpus": os.cpu_count(),
        },
    }


def json_text(report: dict[str, Any]) -> str:
    """A JSON object; lists of numbers on one line each."""
    text = json.dumps(_plain(report), indent=1) + "\n"
    one_line = lambda numbers: " ".join(numbers[0].split())
    return re.sub(r"\[[^][{}]*]", one_line, text)


def plus_minus(
    value: Estimate, digits: int, scale: float = 1, sign: bool = False
) -> str:
    """A mean and its standard error, if there is one."""
    kind = "f" if abs(scale * value.mean) < _LONG else "e"  # of what has diverged
    mean = f"{scale * value.mean:{'+' if sign else ''}.{digits}{kind}}"
    if math.isnan(value.stderr):
        return mean
    return f"{mean} ± {scale * value.stderr:.{digits}{kind}}"


def aligned(lines: list[list[str]]) -> str:
    """A Markdown table; the first line is its head."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    head, *body = [
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        for line in lines
    ]
    rule = ["-" * width for width in widths]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *body])


def _plain(value: Any) -> Any:
    """To what JSON knows: lists for arrays, five digits, null for nan."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value
