"""Rules are checked where they are made: one's own as strictly as ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from consensus_optax import _check
from consensus_optax._rows.statistics import Statistic
from consensus_optax._rules.kinds import (
    After,
    Among,
    Columns,
    Fold,
    Mixing,
    Noised,
    Probing,
    Reads,
    Remembering,
    Scaling,
    Weighting,
)
from consensus_optax._rules.steps import is_apart

_KINDS = "a Fold, Columns, Weighting, Among or After"


def check_rule(name: str, rule: Any) -> None:
    """Checks a rule and what it is made of.

    Raises:
      ValueError: it is no rule, or a field of it is not what it must be.
    """
    match rule:
        case Fold():
            _check_statistics(rule.statistics)
            names = rule.remembers
            if not isinstance(names, tuple) or not all(
                isinstance(x, str) for x in names
            ):
                _check.fail("remembers", "a tuple of names", names)
            more = ("remembered",) if names else ()
            _check.function("resolve", rule.resolve, "merged", "roster", *more)
            if rule.matters is not None:
                votes = [s for s in rule.statistics if s.of_products]
                first = [f"merged_{i}" for i in range(len(votes))]
                _check.function("matters", rule.matters, *first, "roster")
        case Columns():
            _check.function("reduce", rule.reduce, "stack", "weights")
        case Weighting():
            _check.function("weigh", rule.weigh, "products", "roster", "state")
            _check.function("init", rule.init, "params", "dtype")
            _check.one_of("reads", rule.reads, Reads)
            _check.flag("per_leaf", rule.per_leaf)
            _check.flag("remembers", rule.remembers)
            _check_degree(rule.degree, (0, -1, -2))
            _check_apart(rule)
        case Among():
            _check_selector(rule.selector)
            _check_composed(rule.rule)
        case After():
            _check_step(rule.first)
            if not is_apart(rule.first):
                _check_composed(rule.rule)
            check_rule("rule", rule.rule)
        case Noised():
            check_rule("rule", rule.rule)
            _check.function("add", rule.add, "update", "roster", "state")
        case _:
            raise ValueError(f"`{name}` must be {_KINDS}; got {_found(rule)}")


def _check_apart(rule: Weighting) -> None:
    if rule.apart is None:
        return
    _check.one_of("apart", rule.apart, ("weight", "share"))
    reads = Reads(rule.reads)
    if not (reads.lengths or reads == Reads.NOTHING) or rule.remembers:
        found = f"reads={rule.reads!s}, remembers={rule.remembers}"
        _check.fail("apart", "None where a rule reads more than lengths", found)


def _check_composed(rule: Any) -> None:
    """Checks what rows are given to that other rows have chosen, or changed."""
    if is_noised(rule):
        raise ValueError(
            "`rule` must add no noise: here each row decides what becomes of others, "
            "which no bound on what one row adds knows of. Clip rows and add noise by "
            "themselves, and transform the private sum."
        )
    check_rule("rule", rule)


def is_noised(rule: Any) -> bool:
    """Whether noise is added, perhaps to rows that something is done to first."""
    return isinstance(rule, Noised) or (
        isinstance(rule, After) and is_noised(rule.rule)
    )


def _found(rule: Any) -> str:
    """What was given in place of a rule, and what to do about it."""
    if isinstance(rule, Mixing | Scaling):
        return "a Mixing: use co.after(mixing, reducer)"
    if isinstance(rule, type):
        return f"the class {rule.__name__}: give an instance of it"
    if hasattr(rule, "rule"):
        return f"a {type(rule).__name__}: it has a rule already"
    if callable(rule):
        return "a function: say what kind of rule it is, such as co.Columns(function)"
    return f"an object of type {type(rule).__name__}"


def _check_statistics(statistics: Any) -> None:
    wanted = "a sequence of Statistic, one at least"
    if isinstance(statistics, Statistic):
        raise ValueError(f"`statistics` must be {wanted}; got one: put it in a tuple")
    if not isinstance(statistics, Sequence) or not statistics:
        _check.fail("statistics", wanted, statistics)
    for statistic in statistics:
        if not isinstance(statistic, Statistic):
            _check.fail("statistics", wanted, statistics)
        _check.function("observe", statistic.observe, "row", "weight")
        _check.function("merge", statistic.merge, "one", "other")


def _check_selector(selector: Any) -> None:
    if not isinstance(selector, Weighting):
        found = f"a {type(selector).__name__}"
    elif selector.per_leaf or selector.remembers:
        how = f"per_leaf={selector.per_leaf}, remembers={selector.remembers}"
        found = f"one with {how}"
    else:
        return check_rule("selector", selector)
    raise ValueError(
        "`selector` must be a weighting that gives every row one weight from this "
        f"step's rows alone; got {found}"
    )


def _check_step(step: Any) -> None:
    """Ours alone have a word for what else is done to rows: `row_transforms`."""
    if not isinstance(step, Scaling | Probing | Remembering):
        check_mixing(step)


def check_mixing(mixing: Any) -> None:
    """Checks a mixing, one's own or ours."""
    if not isinstance(mixing, Mixing):
        raise ValueError(
            f"`mixing` must be a linear map of rows (co.Mixing); got a "
            f"{type(mixing).__name__}"
        )
    _check.function("mix", mixing.mix, "products", "roster")
    _check.one_of("reads", mixing.reads, Reads)
    _check_degree(mixing.degree, (0,))


def _check_degree(degree: Any, known: Sequence[int]) -> None:
    if degree is not None and degree not in known:
        words = " or ".join(map(str, known))
        _check.fail("degree", f"{words}, or None if there is none", degree)
