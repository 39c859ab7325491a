"""Attacks: what dishonest rows may hold, for tests and benchmarks of robust rules.

Each attack on rows is a function of the honest rows, how many attackers there are and
a random key, to the rows of the attackers; they see everything that the honest rows
hold. Rows are trees of arrays with a leading axis, as everywhere:

    rows = attacks.join(honest, attacks.sign_flip(honest, 2, key))

:func:`strongest` makes of one that has a strength one that adapts: of all strengths it
takes that which moves a given rule farthest. :func:`label_flip` and :func:`back_door`
are attacks on data, :func:`silence` is one on who is there.

One attack per file. Nothing here needs an optional package or knows a rule by name.
Imports ``_running`` and what is below.
"""

from consensus_optax.attacks._a_little_is_enough import a_little_is_enough, deviations
from consensus_optax.attacks._back_door import back_door, trigger
from consensus_optax.attacks._gaussian import gaussian
from consensus_optax.attacks._infinite import infinite
from consensus_optax.attacks._inner_product_manipulation import (
    inner_product_manipulation,
)
from consensus_optax.attacks._join import join
from consensus_optax.attacks._label_flip import label_flip
from consensus_optax.attacks._mimic import mimic
from consensus_optax.attacks._sign_flip import sign_flip
from consensus_optax.attacks._silence import silence
from consensus_optax.attacks._strongest import (
    GRID,
    SHORT_GRID,
    Strongest,
    search_strength,
    strongest,
)

__all__ = [
    "GRID",
    "SHORT_GRID",
    "Strongest",
    "a_little_is_enough",
    "back_door",
    "deviations",
    "gaussian",
    "infinite",
    "inner_product_manipulation",
    "join",
    "label_flip",
    "mimic",
    "search_strength",
    "sign_flip",
    "silence",
    "strongest",
    "trigger",
]
