"""Around federated rounds: who takes part, when updates arrive, what the server sees.

Clients are rows, so a rule is all that a server needs besides what is here. One method
per file. No optional package is asked for; `consensus_optax.training` has the rounds
themselves. Imports ``privacy``, ``_running`` and what is below.
"""

from consensus_optax.federated._arrivals import (
    Arrivals,
    arrivals,
    exponential_duration,
    sample_first,
)
from consensus_optax.federated._buffered import BufferState, buffer_of, buffered
from consensus_optax.federated._by_count import sample_by_count
from consensus_optax.federated._fixed_point import FixedPoint, fixed_point
from consensus_optax.federated._masking import Masked, masked, unmasked
from consensus_optax.federated._poisson import sample_poisson
from consensus_optax.federated._power_of_choice import sample_by_loss
from consensus_optax.federated._secure_sum import SecureSumState, secure_sum
from consensus_optax.federated._staleness import (
    hinge_staleness,
    polynomial_staleness,
)
from consensus_optax.federated._stratified import sample_stratified
from consensus_optax.federated._uniform import sample_clients

__all__ = [
    "Arrivals",
    "BufferState",
    "FixedPoint",
    "Masked",
    "SecureSumState",
    "arrivals",
    "buffer_of",
    "buffered",
    "exponential_duration",
    "fixed_point",
    "hinge_staleness",
    "masked",
    "polynomial_staleness",
    "sample_by_count",
    "sample_by_loss",
    "sample_clients",
    "sample_first",
    "sample_poisson",
    "sample_stratified",
    "secure_sum",
    "unmasked",
]
