"""Flax models and a training loop; needs ``pip install "consensus_optax[flax]"``.

The only place of the library that imports flax. Imports whatever is below.
"""

from consensus_optax.federated import sample_clients
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
)
from consensus_optax.training._functional import apply_rows, functional, init_many
from consensus_optax.training._late import (
    LateFit,
    late_batches,
    late_round,
    start_late,
)
from consensus_optax.training._linen import (
    linen_value_and_reduced_grad,
    linen_value_and_rows,
)
from consensus_optax.training._loop import (
    Fit,
    mean_step,
    row_step,
    start,
    train,
    watched,
    weighted_mean,
)
from consensus_optax.training._nnx import (
    nnx_value_and_reduced_grad,
    nnx_value_and_rows,
)

__all__ = [
    "CharacterMLP",
    "CharacterTransformer",
    "ClientMemory",
    "ClientState",
    "Cohort",
    "Conv3x3",
    "Fit",
    "LateFit",
    "SmallCNN",
    "apply_rows",
    "client_batches",
    "client_memory",
    "draw_examples",
    "federated_round",
    "functional",
    "init_many",
    "late_batches",
    "late_round",
    "linen_value_and_reduced_grad",
    "linen_value_and_rows",
    "local_updates",
    "mean_step",
    "nnx_value_and_reduced_grad",
    "nnx_value_and_rows",
    "personalized",
    "row_step",
    "sample_clients",
    "start",
    "start_late",
    "train",
    "watched",
    "weighted_mean",
]
