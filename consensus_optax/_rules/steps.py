"""What is done to rows before a rule: four kinds, none of which knows a source.

They are mixed, scaled, looked at, or replaced by what remembers them. ``After`` puts
one before a rule, so a chain of them is a rule itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from consensus_optax._rules.roster import Roster
from consensus_optax._typing import Array, PerRow, Tree


class Mixing(NamedTuple):
    """A linear map of the rows, B to B', decided from inner products.

    Attributes:
      mix: (products, roster) to (matrix, weights): new row i is sum_j matrix[i, j] g_j,
        with weight weights[i]; (B', B) and (B',). Columns of absent rows are not read.
      reads: as in :class:`Weighting`.
      degree: 0 where the map is the same for rows times any number, or None; as there.
      text: how it prints.
    """

    mix: Callable[[Any, Roster], tuple[Array, Array]]
    reads: str = "gramian"
    degree: int | None = None
    text: str = "Mixing(...)"

    def __repr__(self) -> str:
        """The call that made it."""
        return self.text


class Scaling(NamedTuple):
    """Every row times a number, which rows' lengths decide, or none.

    Attributes:
      factors: (products, roster) to (B,) finite numbers >= 0 for the rows there;
        ``products`` is what ``reads`` says.
      reads: ``"norms"``, (B,) squared norms, or ``"nothing"``, None.
      degree: as in :class:`Weighting`: -1 where a row's length goes out.
      apart: whether the row itself alone decides its number.
      text: how it prints.
    """

    factors: Callable[[Any, Roster], Array]
    reads: str = "norms"
    degree: int | None = None
    apart: bool = True
    text: str = "Scaling(...)"

    def __repr__(self) -> str:
        """The call that made it."""
        return self.text


class Known(NamedTuple):
    """What a probe is told of rows of which it reads so much.

    Attributes:
      products: of every leaf, the first axis: (L, B, B) inner products, or (L, B)
        squared norms.
      of_mean: (L,) squared norms of the rows' weighted mean, if only norms are read.
      weights: (B,) of the rows, 0 for those that are absent or whose squared norm is
        not finite, in the leaves looked at.
      step: () int32, number of updates made before.
      like: shapes of the parameters, a tree; its L floating leaves are meant above.
    """

    products: Array
    of_mean: Array | None
    weights: PerRow
    step: Array
    like: Tree


class Probing(NamedTuple):
    """A look at rows that go on as they are.

    Attributes:
      observe: (known, state) to state.
      init: (params, dtype) to the state.
      leaves: shapes of the parameters to the floating leaves looked at, by number.
      reads: ``"gramian"``, or ``"norms"``: those, and of the mean.
    """

    observe: Callable[[Known, Any], Any]
    init: Callable[[Tree, Any], Any]
    leaves: Callable[[Tree], list[int]]
    reads: str = "gramian"


class Remembering(NamedTuple):
    """Rows replaced by what is made of them and of a memory of every row.

    Attributes:
      replace: (leaves, roster, state) to (leaves, state): floating leaves of rows,
        (B, *shape) each; a row with a non-finite entry may come out as nan.
      init: (params, dtype) to the state.
      name: what makes it, for errors.
    """

    replace: Callable[[list[Any], Roster, Any], tuple[list[Any], Any]]
    init: Callable[[Tree, Any], Any]
    name: str


Step = Mixing | Scaling | Probing | Remembering


def is_apart(step: Step) -> bool:
    """Whether no row changes what becomes of another."""
    match step:
        case Scaling():
            return step.apart
        case Probing():
            return True
    return False
