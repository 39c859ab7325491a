"""The server's optimizer is any optax chain: the published ones, by their formulas.

Pinned: two coordinates, the mean of two clients' updates in three rounds. Delta is what
the clients moved, so minus the mean of the rows.

- FedAvgM (Hsu et al. 1909.06335; Flower's `FedAvgM`): v = beta v - Delta, x -= eta v.
- FedAdam, FedYogi (Reddi et al. 2003.00295, algorithm 2): m = b1 m + (1 - b1) Delta; v
  as Adam's or Yogi's; x += eta m / (sqrt(v) + tau), without correction of the bias, v
  from tau^2.
- FedJAX hands optax's own (`fedjax.optimizers.adam`, `yogi`) the mean: corrected.
- Flower's `FedAdam` multiplies eta by sqrt(1 - b2^(t + 1)) / (1 - b1^(t + 1)), though
  its rounds are counted from 1, and starts v at 0, as does its `FedYogi`, which
  corrects nothing.

The numbers of FedJAX 0.0.17 and Flower 1.42 are what these packages gave.
"""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co

# what optax counts are integers
pytestmark = pytest.mark.standard_promotion

ROWS = np.array(
    [
        [[1.0, -2.0], [3.0, 0.0]],
        [[0.5, 1.0], [0.5, 3.0]],
        [[-1.0, 0.25], [2.0, 0.25]],
    ]
)
DELTAS = -ROWS.mean(1)  # (3, 2)
B1, B2, ETA, TAU = 0.9, 0.99, 0.1, 1e-3


def trained(server):
    optimizer = optax.chain(co.mean(), server)
    params = jnp.zeros(2)
    state = optimizer.init(params)
    for rows in jnp.asarray(ROWS, jnp.float32):
        updates, state = optimizer.update(rows, state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params)


def momentum():
    x, v = np.zeros(2), np.zeros(2)
    for delta in DELTAS:
        v = 0.9 * v - delta
        x = x - ETA * v
    return x


def flower_factor(t):
    return np.sqrt(1 - B2 ** (t + 1)) / (1 - B1 ** (t + 1))


def adaptive(yogi, corrected, rate=lambda t: 1, first=0.0, moment=0.0):
    x, m, v = np.zeros(2), np.full(2, moment), np.full(2, first)
    for t, delta in enumerate(DELTAS, 1):
        m = B1 * m + (1 - B1) * delta
        square = delta**2
        if yogi:
            v = v - (1 - B2) * square * np.sign(v - square)
        else:
            v = B2 * v + (1 - B2) * square
        one, two = (1 - B1**t, 1 - B2**t) if corrected else (1, 1)
        x = x + ETA * rate(t) * (m / one) / (np.sqrt(v / two) + TAU)
    return x


def with_schedules(optimizer, **options):
    return optax.inject_hyperparams(optimizer, static_args=("b1", "b2"))(
        b1=B1, b2=B2, **options
    )


def uncorrected_rate(t):
    """Of an optimizer that corrects, for one that does not."""
    return ETA * (1 - B1 ** (t + 1)) / jnp.sqrt(1 - B2 ** (t + 1))


def flower_rate(t):
    """One step ahead of what corrects the bias."""
    ahead = jnp.sqrt(1 - B2 ** (t + 2)) / (1 - B1 ** (t + 2))
    return ahead * uncorrected_rate(t)


def widened(t):
    return TAU / jnp.sqrt(1 - B2 ** (t + 1))


def yogi_from_zero():
    """optax's own has m and v begin at 1e-6."""
    made = optax.inject_hyperparams(
        optax.scale_by_yogi, static_args=("b1", "b2", "initial_accumulator_value")
    )(B1, B2, eps=widened, initial_accumulator_value=0.0)
    return optax.chain(made, optax.scale_by_learning_rate(uncorrected_rate))


SERVERS = {
    "FedAvgM": optax.sgd(ETA, momentum=0.9),
    "FedJAX's FedAdam": optax.adam(ETA, B1, B2, eps=TAU),
    "FedJAX's FedYogi": optax.yogi(ETA, B1, B2, eps=TAU),
    "Flower's FedAdam": with_schedules(
        optax.adam, learning_rate=flower_rate, eps=widened
    ),
    "Flower's FedYogi": yogi_from_zero(),
    # v starts at 0 rather than at tau^2: of 1e-6 and a step's 1e-2 that is nothing
    "FedAdam": with_schedules(optax.adam, learning_rate=uncorrected_rate, eps=widened),
    "FedYogi": with_schedules(optax.yogi, learning_rate=uncorrected_rate, eps=widened),
}
FORMULAS = {
    "FedAvgM": momentum(),
    "FedJAX's FedAdam": adaptive(False, True),
    "FedJAX's FedYogi": adaptive(True, True, first=1e-6, moment=-1e-6),
    "Flower's FedAdam": adaptive(False, False, rate=flower_factor),
    "Flower's FedYogi": adaptive(True, False),
    "FedAdam": adaptive(False, False),
    "FedYogi": adaptive(True, False, first=TAU**2),
}
# also Flower's, of FedAvgM
PINNED = {
    "FedAvgM": [-0.687, -0.134],
    "FedJAX's FedAdam": [-0.260812, 0.028133],
    "FedJAX's FedYogi": [-0.259707, 0.028373],
    "Flower's FedAdam": [-0.215059, 0.010477],
    "Flower's FedYogi": [-0.331113, -0.004832],
    "FedAdam": [-0.332746, -0.005207],
    "FedYogi": [-0.331109, -0.004836],
}


@pytest.mark.parametrize("name", SERVERS)
def test_a_chain_is_the_published_server(name):
    server, wanted = SERVERS[name], FORMULAS[name]
    np.testing.assert_allclose(PINNED[name], wanted, atol=1e-6)
    # optax's Yogi has m begin at 1e-6, the paper's at 0: three steps of 0.1 * 1e-6 /
    # sqrt(v), with v above 0.01 where it matters
    atol = 3e-6 if name == "FedYogi" else 1e-6
    np.testing.assert_allclose(trained(server), wanted, rtol=1e-6, atol=atol)
