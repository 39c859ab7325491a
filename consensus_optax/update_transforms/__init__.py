"""Update transformations: one update in, one out, after a reducer.

``freeze`` and ``partition`` go around reducers and optimizers: who sees what;
``proximal`` is for the optimizers of clients.
One method per file. Imports ``_running``, ``_rules``, ``_rows`` and below.
"""

from consensus_optax.update_transforms._cautious import cautious
from consensus_optax.update_transforms._ema_agreement import ema_agreement
from consensus_optax.update_transforms._freeze import freeze
from consensus_optax.update_transforms._guard import guard
from consensus_optax.update_transforms._magma import magma
from consensus_optax.update_transforms._median_of_three_steps import (
    median_of_three_steps,
)
from consensus_optax.update_transforms._partition import partition
from consensus_optax.update_transforms._proximal import proximal
from consensus_optax.update_transforms._skip_if_empty import skip_if_empty
from consensus_optax.update_transforms._temporal_and_mask import temporal_and_mask

__all__ = [
    "cautious",
    "ema_agreement",
    "freeze",
    "guard",
    "magma",
    "median_of_three_steps",
    "partition",
    "proximal",
    "skip_if_empty",
    "temporal_and_mask",
]
