"""Stacks at and near a point where no step helps every row: no noise for an update.

In float32, hundreds of stacks in one program: an update opposes no row, or it is
exactly zero and not ready.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co

pytestmark = pytest.mark.slow

EPS = np.finfo(np.float32).eps
B, P = 4, 20
# A Gramian of P terms and what a Cholesky factor of it needs, (8 + 2 B) eps, are what
# is known of a gain, relative to the rows that the update is made of; an update is no
# shorter than sqrt(4 eps) of these.
OPPOSED = (P + 8 + 2 * B) * EPS / np.sqrt(4 * EPS)


def cancelling(rng, count, width):
    """Rows in ``width`` dimensions of which the first ``count`` cancel, shuffled."""
    rows = np.zeros((B, P))
    rows[:, :width] = rng.normal(size=(B, width))
    shares = rng.uniform(0.2, 1, size=(count - 1, 1))
    rows[count - 1] = -(shares * rows[: count - 1]).sum(0)
    return rows[rng.permutation(B)]


def near(distance):
    return lambda rng: cancelling(rng, B, 8) + distance * rng.normal(size=(B, P))


def summing_to_zero(rng):
    rows = rng.normal(size=(B, P))
    rows[-1] = -rows[:-1].sum(0)
    return rows


KINDS = {
    "three of them": lambda rng: cancelling(rng, 3, 3),
    "three, in space": lambda rng: cancelling(rng, 3, 8),
    "two": lambda rng: cancelling(rng, 2, 8),
    "all": lambda rng: cancelling(rng, B, 3),
    "all, in space": lambda rng: cancelling(rng, B, P),
    "their sum": summing_to_zero,
    "1e-2 away": near(1e-2),
    "1e-3 away": near(1e-3),
    "1e-4 away": near(1e-4),
    "not at all": lambda rng: rng.normal(size=(B, P)),
}
COUNT = 40
ALL = np.stack(
    [make(np.random.default_rng(i)) for make in KINDS.values() for i in range(COUNT)]
).astype(np.float32)
LENGTHS = np.linalg.norm(np.float64(ALL), axis=2)  # (S, B)


def of_kind(values, kind):
    start = list(KINDS).index(kind) * COUNT
    return values[start : start + COUNT]


def outcome(make, settings=(0.0,)):
    """Updates (S, P) and states of make(setting), in float64, all in one program."""

    def first(rows, setting):
        reducer, params = make(setting), jnp.zeros(P)
        return reducer.update(rows, reducer.init(params), params)

    every = jax.jit(jax.vmap(jax.vmap(first, (0, None)), (None, 0)))
    updates, state = every(ALL, jnp.asarray(settings, jnp.float32))
    ready = np.asarray(state.consensus_ready)
    np.testing.assert_array_equal(ready, (np.asarray(updates) != 0).any(-1))
    return np.asarray(updates, np.float64), ready, state.rule_state


def cosines(update):
    """Cosine of every row with the update, 1 where it is zero."""
    length = np.linalg.norm(update, axis=1)[:, None]
    gains = (np.float64(ALL) @ update[:, :, None])[..., 0]
    return np.where(length > 0, gains / (LENGTHS * np.where(length > 0, length, 1)), 1)


NO_CONFLICT = {
    "mgda": (lambda _: co.mgda(), (0.0,)),
    "cagrad": (co.cagrad, (1.0, 1.02, 1.2, 1.9, 3.0)),
    "nash_mtl": (co.nash_mtl, (0.5, 10.0)),
    "fairgrad": (co.fairgrad, (0.5, 1.0, 2.0, 8.0)),
}


@pytest.mark.parametrize("name", NO_CONFLICT)
def test_no_row_is_opposed_or_the_update_is_zero(name):
    updates, ready, state = outcome(*NO_CONFLICT[name])
    for update, there, residual in zip(updates, ready, state.residual, strict=True):
        assert cosines(update).min() >= -OPPOSED
        assert not of_kind(there, "all").any()
        assert not of_kind(there, "all, in space").any()
        assert not of_kind(there, "their sum").any()
        assert not of_kind(there, "1e-4 away").any()
        assert of_kind(there, "1e-2 away").all()
        assert of_kind(there, "not at all").all()
        assert np.max(residual) <= 1e-4  # of the update, in every case


def test_a_combination_that_vanishes_is_found_exactly():
    for make in (lambda _: co.mgda(), lambda _: co.cagrad(1.9)):
        _, ready, state = outcome(make)
        for kind in ("three of them", "two", "all"):
            assert not of_kind(ready[0], kind).any()
            np.testing.assert_array_equal(of_kind(state.residual[0], kind), 0)
            assert of_kind(state.converged[0], kind).all()


@pytest.mark.parametrize("factory", [co.dual_projection, co.upgrad])
def test_projections_are_more_than_their_regularization_leaves(factory):
    updates, ready, _ = outcome(lambda _: factory())
    for kind in ("all, in space", "their sum", "1e-3 away", "1e-4 away"):
        assert not of_kind(ready[0], kind).any()
    for kind in ("two", "not at all"):
        assert of_kind(ready[0], kind).all()
    if factory is co.dual_projection:
        along = (ALL.mean(1) * updates[0]).sum(1)
        squares = (updates[0] ** 2).sum(1)
        assert (along <= 2 * squares * (1 + 1e-2)).all()  # a Gramian's short squares


def test_rows_that_sum_to_zero_have_no_length_to_give():
    for make in (co.conflict_free, co.imtl_g, co.aligned_mtl):
        _, ready, _ = outcome(lambda _, make=make: make())
        assert not of_kind(ready[0], "their sum").any()


def test_coefficients_of_rounding_are_not_divided_by_their_sum():
    _, _, state = outcome(lambda _: co.subspace_weighting())
    assert of_kind(state.fell_back[0], "their sum").all()
    assert not of_kind(state.fell_back[0], "not at all").all()


def test_opposite_rows_are_projected_to_nothing():
    """Lengths apart, so that products round."""
    factors = np.float32([[1.0], [-1 / 3]])
    rows = factors * np.random.default_rng(0).normal(size=(50, 1, P)).astype("float32")
    reducer, params = co.pcgrad(jax.random.key(0)), jnp.zeros(P)
    first = lambda rows: reducer.update(rows, reducer.init(params), params)
    updates, state = jax.vmap(first)(jnp.asarray(rows))
    np.testing.assert_array_equal(updates, 0)
    assert not state.consensus_ready.any()


def test_a_mean_of_rounding_is_no_step_to_the_boundary():
    rows = jnp.asarray(of_kind(ALL, "their sum"))
    reducer, params = co.trust_region_weighting(1.0), jnp.zeros(P)
    first = lambda rows: reducer.update(
        rows, reducer.init(params), params, span_hessian=-rows @ rows.T
    )
    updates, state = jax.vmap(first)(rows)
    np.testing.assert_array_equal(updates, 0)
    assert not state.consensus_ready.any()


def test_mgda_with_a_zero_row_has_no_residual():
    rows, params = jnp.eye(3).at[1].set(0), jnp.zeros(3)
    reducer = co.mgda()
    update, state = reducer.update(rows, reducer.init(params), params)
    assert not state.consensus_ready
    np.testing.assert_array_equal(update, 0)
    assert state.rule_state == (0, True)
