"""Scalarizers: several losses to one, before any gradient is taken.

The baselines for rules over tasks: what they see are K numbers, not K gradients, so
they cost nothing and know nothing of conflicts. One method per file. Imports ``_check``
and ``_typing``.
"""

from consensus_optax.scalarizers._dwa import DwaState, dwa
from consensus_optax.scalarizers._famo import FamoState, famo
from consensus_optax.scalarizers._scalarizer import Scalarizer
from consensus_optax.scalarizers._smooth_tchebycheff import smooth_tchebycheff
from consensus_optax.scalarizers._uncertainty import uncertainty

__all__ = [
    "DwaState",
    "FamoState",
    "Scalarizer",
    "dwa",
    "famo",
    "smooth_tchebycheff",
    "uncertainty",
]
