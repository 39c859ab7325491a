"""Epsilon is that of dp-accounting for the same parameters; multipliers are enough."""

import math
import sys

import pytest

from consensus_optax.privacy import (
    PoissonSampling,
    epsilon_of,
    noise_multiplier_for,
)

SAMPLING = PoissonSampling(1000, 0.1, num_steps=20, max_size=1000)
CASES = {
    "small batches": (SAMPLING._replace(probability=0.01), 1.0, 1e-5),
    "usual": (SAMPLING, 2.0, 1e-4),
    "whole": (SAMPLING._replace(probability=1.0), 20.0, 1e-5),
}


@pytest.fixture(name="accounting")
def _accounting():
    return pytest.importorskip("dp_accounting", reason="the extra `privacy` has it")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param("small batches", marks=pytest.mark.slow),
        pytest.param("usual", marks=pytest.mark.slow),
        "whole",
    ],
)
def test_epsilon_is_dp_accountings(case, accounting):
    sampling, z, delta = CASES[case]
    from dp_accounting import pld

    accountant = pld.PLDAccountant()
    step = accounting.PoissonSampledDpEvent(
        sampling.probability, accounting.GaussianDpEvent(z)
    )
    for _ in range(sampling.num_steps):
        accountant.compose(step)
    wanted = accountant.get_epsilon(delta)
    # composed one by one there, by a power of a distribution here
    assert epsilon_of(z, sampling, delta=delta) == pytest.approx(wanted, rel=1e-3)


def test_one_step_without_sampling_is_the_gaussian_mechanism(accounting):
    del accounting
    sampling = PoissonSampling(10, 1.0, num_steps=1, max_size=10)
    epsilon = epsilon_of(1.5, sampling, delta=1e-5)
    tail = lambda x: math.erfc(x / math.sqrt(2)) / 2
    less, more = (1.5 * epsilon + x for x in (-1 / 3, 1 / 3))
    delta = tail(less) - math.exp(epsilon) * tail(more)
    assert delta == pytest.approx(1e-5, rel=1e-2)  # Balle and Wang 2018; a grid of 1e-4


@pytest.mark.slow
def test_what_is_cut_off_is_charged(accounting):
    del accounting
    at = lambda size: epsilon_of(2.0, SAMPLING._replace(max_size=size), delta=1e-4)
    whole, rarely, often = at(1000), at(150), at(100)
    assert whole <= rarely < 1.001 * whole
    assert often > 1.5 * whole


@pytest.mark.slow
def test_the_multiplier_is_enough_and_hardly_more(accounting):
    del accounting
    z = noise_multiplier_for(1.0, SAMPLING, delta=1e-4)
    assert epsilon_of(z, SAMPLING, delta=1e-4) <= 1
    assert epsilon_of(z - 2e-3, SAMPLING, delta=1e-4) > 1


def test_no_noise_is_no_privacy(accounting):
    del accounting
    assert epsilon_of(0.0, SAMPLING, delta=1e-4) == math.inf


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    monkeypatch.delitem(sys.modules, "dp_accounting.pld", raising=False)
    with pytest.raises(ImportError, match=r"pip install dp-accounting, or pip"):
        epsilon_of(1.0, SAMPLING, delta=1e-5)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="`delta` must be in"):
        epsilon_of(1.0, SAMPLING, delta=0.0)
    with pytest.raises(ValueError, match="`epsilon` must be in"):
        noise_multiplier_for(0.0, SAMPLING, delta=1e-5)
    with pytest.raises(ValueError, match="`probability`"):
        epsilon_of(1.0, SAMPLING._replace(probability=2.0), delta=1e-5)
