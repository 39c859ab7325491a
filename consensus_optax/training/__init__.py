"""Flax models and a training loop; needs ``pip install "consensus_optax[flax]"``.

The only place of the library that imports flax. Imports whatever is below.
"""

from consensus_optax.training._character_models import (
    CharacterMLP,
    CharacterTransformer,
)
from consensus_optax.training._clients import (
    ClientMemory,
    ClientState,
    Cohort,
    client_memory,
    personalized,
)
from consensus_optax.training._cnn import Conv3x3, SmallCNN
from consensus_optax.training._federated import (
    client_batches,
    draw_examples,
    federated_round,
    local_updates,
    sample_clients,
)
from consensus_optax.training._functional import apply_rows, functional, init_many
from consensus_optax.training._loop import (
    Fit,
    mean_step,
    row_step,
    start,
    train,
    watched,
    weighted_mean,
)

__all__ = [
    "CharacterMLP",
    "CharacterTransformer",
    "ClientMemory",
    "ClientState",
    "Cohort",
    "Conv3x3",
    "Fit",
    "SmallCNN",
    "apply_rows",
    "client_batches",
    "client_memory",
    "draw_examples",
    "federated_round",
    "functional",
    "init_many",
    "local_updates",
    "mean_step",
    "personalized",
    "row_step",
    "sample_clients",
    "start",
    "train",
    "watched",
    "weighted_mean",
]
