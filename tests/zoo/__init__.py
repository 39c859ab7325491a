"""Every reducer, once, with what it promises: a new one is one row here."""

import pytest

from consensus_optax._rules.kinds import After, Among, Fold, Weighting
from tests.zoo._row import Row
from tests.zoo.agreement import AGREEMENT
from tests.zoo.columns import COLUMNS
from tests.zoo.folds import FOLDS
from tests.zoo.multi_objective import MULTI_OBJECTIVE
from tests.zoo.own import OWN
from tests.zoo.robust import ROBUST
from tests.zoo.weightings import WEIGHTINGS

ZOO = [*FOLDS, *WEIGHTINGS, *COLUMNS, *ROBUST, *AGREEMENT, *MULTI_OBJECTIVE, *OWN]
# One row of every factory, and of every way in which it may read rows: what depends on
# no other option is asked of these alone.
_way = lambda row: (row.factory, row.per_leaf, row.options.get("reference"))
FACTORIES = list({_way(row): row for row in reversed(ZOO)}.values())[::-1]


def _kind(rule):
    """What decides which code of an engine runs a rule."""
    match rule:
        case Fold(statistics=s):
            signs = all(statistic.of_signs for statistic in s)
            return "fold", len(s), signs, rule.matters is None, bool(rule.remembers)
        case Weighting():
            return "weighting", rule.reads, rule.per_leaf, rule.remembers
        case Among():
            return "among", _kind(rule.selector), _kind(rule.rule)
        case After():
            return "after", rule.first.reads, _kind(rule.rule)
    return "columns"


def _asks(rule):
    """What a rule asks of its rows: what a reducer is to optax hangs on no more."""
    match rule:
        case Weighting():
            return "weighting", rule.reads, rule.remembers
        case _:
            return type(rule).__name__


def _one_of_each(rows, kind):
    """The first row of every such kind."""
    return [*{kind(row.make().rule): row for row in reversed(rows)}.values()][::-1]


def _now_or_in_ci(rows):
    """One row of every kind stands for all; CI asks for the others by their marker."""
    now = _one_of_each(rows, _asks)
    mark = lambda row: () if row in now else pytest.mark.whole_zoo
    return [pytest.param(row, id=str(row), marks=mark(row)) for row in rows]


KINDS = _one_of_each(ZOO, _kind)
ASKING = _one_of_each(ZOO, _asks)
OF_EACH_KIND = _now_or_in_ci(ZOO)
EVERY_FACTORY = _now_or_in_ci(FACTORIES)

__all__ = [
    "ASKING",
    "EVERY_FACTORY",
    "FACTORIES",
    "KINDS",
    "OF_EACH_KIND",
    "ZOO",
    "Row",
]
