"""Shape aliases: the letters that docstrings and comments use.

B is the number of rows (the example axis), P the number of parameters (in thought:
leaves are never concatenated), M and N the two sides of a matrix-shaped parameter,
T the terms of a row's sum of outer products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

Array = jax.Array
AxisName = str | tuple[str, ...]  # mesh axis or axes
Tree = Any  # a pytree
Scalar = float | Array  # a number, or an array of shape ()
Threshold = Scalar | Callable[[Array], Scalar]  # a number, or a schedule of the step
