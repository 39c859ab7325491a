"""Around ``co.private_sum``: batches drawn at random, and what they cost in privacy.

A step of a private sum is a Gaussian mechanism. `PoissonSampling` says how its batches
are drawn; the same object draws them (`poisson_batches`) and is accounted for
(`epsilon_of`, `noise_multiplier_for`), so that the one cannot but match the other.
`clipped_grad` stands in for that of ``jax_privacy``.

Accounting needs ``pip install "consensus_optax[privacy]"``, `clipped_grad` also
``jax_privacy``; both are imported once they are asked for. Imports ``engines``,
``weightings`` and what is below.
"""

from consensus_optax.privacy._accounting import epsilon_of, noise_multiplier_for
from consensus_optax.privacy._clipped_grad import clipped_grad
from consensus_optax.privacy._poisson import PoissonSampling, poisson_batches

__all__ = [
    "PoissonSampling",
    "clipped_grad",
    "epsilon_of",
    "noise_multiplier_for",
    "poisson_batches",
]
