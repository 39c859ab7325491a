"""Shape aliases: the letters that docstrings and comments use.

B is the number of rows (the example axis), P the number of parameters (in thought:
leaves are never concatenated), M and N the two sides of a matrix-shaped parameter,
T the terms of a row's sum of outer products.

Shapes are those of jaxtyping, for readers, type checkers and tests/test_typing.py,
which holds rules and solvers to them. At run time they are plain arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:

    class Float:
        """Any array: the package does not depend on jaxtyping."""

        def __class_getitem__(cls, given: Any) -> Any:
            return given[0]

    Bool = Int = Float

Array = jax.Array
Gramian = Float[Array, "B B"]  # inner products of all pairs, or what else pairs have
PerRow = Float[Array, "B"]
Marked = Bool[Array, "B"]  # rows
Order = Int[Array, "B"]  # indices of rows
Bordered = Float[Array, "N N"]  # a Gramian and the previous update: N = B + 1
Toward = Float[Array, "2 N"]  # squared norms and products of rows and a target
PerWeight = Float[Array, "N"]  # of all rows, and of the previous update if it joins
RowMap = Float[Array, "C B"]  # new rows from old ones
PerNewRow = Float[Array, "C"]
PerProblem = Float[Array, "K B"]  # numbers for every row in each of K problems
Number = Float[Array, ""]
Flag = Bool[Array, ""]
Count = Int[Array, ""]
AxisName = str | tuple[str, ...]  # mesh axis or axes
Tree = Any  # a pytree
Scalar = float | Array  # a number, or an array of shape ()
Threshold = Scalar | Callable[[Array], Scalar]  # a number, or a schedule of the step
