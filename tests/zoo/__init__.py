"""Every reducer, once, with what it promises: a new one is one row here."""

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
_way = lambda row: (row.factory, *map(row.options.get, ("scope", "reference")))
FACTORIES = list({_way(row): row for row in reversed(ZOO)}.values())[::-1]

__all__ = ["FACTORIES", "ZOO", "Row"]
