"""What a run of private sums costs, by ``dp-accounting``."""

from __future__ import annotations

import math
from typing import Any

from consensus_optax import _check
from consensus_optax.privacy._installed import installed
from consensus_optax.privacy._poisson import PoissonSampling

_TOLERANCE = 1e-3  # of a noise multiplier, always upwards


def epsilon_of(
    noise_multiplier: float, sampling: PoissonSampling, *, delta: float
) -> float:
    r"""The epsilon of a run of :func:`consensus_optax.private_sum` on Poisson batches.

    Guarantees: the parameters that such a run gives away are
    :math:`(\epsilon, \delta)`-differentially private for adding or removing one
    example: whatever set S of results, :math:`P(S) \le e^\epsilon P'(S) + \delta`. It
    is the number that ``dp-accounting`` has for the same parameters, by privacy loss
    distributions with pessimistic rounding. What ``max_size`` cuts off is charged, with
    :math:`N` public. Published besides may be the state's step, and ``max_norm`` where
    it adapts; not losses, counts, norms of rows, or what the run was chosen by.
    Edge cases: no noise: inf.

    Args:
      noise_multiplier: z of the private sum, >= 0.
      sampling: how its batches are drawn, by :func:`poisson_batches`.
      delta: in (0, 1), usually below 1 / N.

    Returns:
      Epsilon, a float.

    Raises:
      ValueError: an argument is out of range.
      ImportError: ``dp-accounting`` is not installed.

    Cost: some seconds, on the CPU.

    References: Koskela et al., `Computing Tight Differential Privacy Guarantees Using
    FFT <https://arxiv.org/abs/1906.03049>`_, 2020; what is cut off: `2508.15089
    <https://arxiv.org/abs/2508.15089>`_, which ``dp-accounting`` follows.

    Examples:
      >>> sampling = PoissonSampling(1000, 0.1, num_steps=50, max_size=200)
      >>> epsilon_of(2.0, sampling, delta=1e-4)  # doctest: +SKIP
      1.3675
    """
    _check.static_number("noise_multiplier", noise_multiplier, 0)
    _check.static_number("delta", delta, 0, 1, open_low=True, open_high=True)
    event = _event(noise_multiplier, sampling.checked())
    return float(_accountant().compose(event).get_epsilon(delta))


def noise_multiplier_for(
    epsilon: float, sampling: PoissonSampling, *, delta: float
) -> float:
    r"""The smallest noise multiplier by which a run has at most this epsilon.

    Guarantees: :func:`epsilon_of` of it is at most ``epsilon``; of a multiplier less by
    2e-3 it is more.

    Args:
      epsilon: > 0.
      sampling: how batches are drawn.
      delta: in (0, 1).

    Returns:
      z, a float, for :func:`consensus_optax.private_sum`.

    Raises:
      ValueError: an argument is out of range.
      ImportError: ``dp-accounting`` is not installed.

    Cost: that of some tens of :func:`epsilon_of`.

    Examples:
      >>> sampling = PoissonSampling(1000, 0.1, num_steps=50, max_size=200)
      >>> noise_multiplier_for(1.0, sampling, delta=1e-4)  # doctest: +SKIP
      2.5203
    """
    _check.static_number("epsilon", epsilon, 0, math.inf, open_low=True, open_high=True)
    _check.static_number("delta", delta, 0, 1, open_low=True, open_high=True)
    sampling = sampling.checked()
    accounting = installed("dp_accounting", "dp-accounting")
    return float(
        accounting.calibrate_dp_mechanism(
            _accountant,
            lambda z: _event(z, sampling),
            epsilon,
            delta,
            tol=_TOLERANCE,
        )
    )


def _accountant() -> Any:
    installed("dp_accounting", "dp-accounting")
    return installed("dp_accounting.pld", "dp-accounting").PLDAccountant()


def _event(noise_multiplier: float, sampling: PoissonSampling) -> Any:
    """What is accounted for: the steps' mechanisms, one after the other."""
    accounting = installed("dp_accounting", "dp-accounting")
    if sampling.max_size >= sampling.num_examples:
        one = accounting.PoissonSampledDpEvent(
            sampling.probability, accounting.GaussianDpEvent(noise_multiplier)
        )
    else:
        one = accounting.TruncatedSubsampledGaussianDpEvent(
            dataset_size=sampling.num_examples,
            sampling_probability=sampling.probability,
            truncated_batch_size=sampling.max_size,
            noise_multiplier=noise_multiplier,
        )
    return accounting.SelfComposedDpEvent(one, sampling.num_steps)
