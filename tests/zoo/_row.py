"""What the table says of one reducer."""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import consensus_optax as co
from consensus_optax._rules.kinds import After, Among, Weighting
from tests._laws import Tolerance
from tests._stacks import B


class Row(NamedTuple):
    """A reducer and what it promises.

    Attributes:
      factory: the public function that makes it.
      reference: (leaves, weights) to the update, slow and plain: leaves (N, size) of
        the present rows, N >= 1.
      laws: functions of tests/_laws.py that hold.
      empty: names of stacks on which nothing is agreed; "all nan" and "nobody" are so
        for everyone.
      options: arguments of the factory. ``num_rows`` follows the stack.
      thresholds: arguments that take numbers, arrays or schedules.
      rtol: of float32, relative to the largest entry of an update; 1e-6 is what the
        project asks for.
      loose: names of stacks that need another, with it.
      least_rows: a stack of fewer is an error when traced.
      rounding: names of stacks whose update float32 cannot know; it is not compared.
      per_leaf: whether it is wrapped in ``co.per_leaf``.
      weights_multiply: whether a weight multiplies its row, rather than to share out.
    """

    factory: Callable[..., Any]
    reference: Callable[..., Any]
    laws: tuple[Callable[..., None], ...]
    empty: tuple[str, ...] = ()
    options: Mapping[str, Any] = MappingProxyType({})
    thresholds: tuple[str, ...] = ()
    rtol: float = 1e-6
    loose: Mapping[str, float] = MappingProxyType({})
    least_rows: int = 1
    rounding: tuple[str, ...] = ()
    per_leaf: bool = False
    weights_multiply: bool = False

    def __str__(self):
        short = str | float | int | None
        plain = {k: v for k, v in self.options.items() if isinstance(v, short)}
        options = ", ".join(f"{key}={value}" for key, value in plain.items())
        call = f"{self.factory.__name__}({options})"
        return f"per_leaf({call})" if self.per_leaf else call

    @property
    def tolerance(self):
        """``rtol`` and ``loose``."""
        return Tolerance(self.rtol, self.loose)

    @property
    def remembers_rows(self):
        """Whether the state has one entry for each row."""
        return "num_rows" in self.options

    @property
    def degree(self):
        """How its weights change with the size of the rows; None if nothing says."""
        return _degree(self.make().rule)

    def make(self, num_rows=B, **options):
        """The reducer, for stacks of that many rows if it must know."""
        given = {**self.options, **options}
        given |= {"num_rows": num_rows} if self.remembers_rows else {}
        made = self.factory(**given)
        return co.per_leaf(made) if self.per_leaf else made

    def settings(self, num_rows=B):
        """The numeric thresholds with their values, and all other arguments."""
        signature = inspect.signature(self.factory).parameters
        default = {
            name: parameter.default
            for name, parameter in signature.items()
            if parameter.default is not inspect.Parameter.empty
        }
        given = {**default, **self.options}
        given |= {"num_rows": num_rows} if self.remembers_rows else {}
        varying = {name: given.pop(name) for name in self.thresholds}
        return varying, given


def _degree(rule):
    match rule:
        case Among():
            return _degree(rule.selector)
        case After():
            return 0 if {rule.first.degree, _degree(rule.rule)} == {0} else None
    return rule.degree if isinstance(rule, Weighting) else None
