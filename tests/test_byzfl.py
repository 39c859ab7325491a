"""What byzfl 0.0.11 makes of one stack of 10 rows, f = 2, and what ours does.

Its numbers, of float64 arrays; its aggregators and transformations write into the array
that they are given (ARC, clipping), so each was given a copy. Where the two differ:

- Krum and Multi-Krum there sum over the n - f - 1 nearest others, the paper and ours
  over n - f - 2: the same rows are chosen here, not always.
- Its geometric median is three steps of Weiszfeld's with nu = 0.1; with as many ours is
  not the same either, as the first step and the floor of distances differ.
- Its SMEA and CAF take one step of the power method from a random start for the first
  eigenvector, so they are random; ours has the eigenvector.
- Its centred clipping starts at zero each time, unless told otherwise; ours goes on
  from the last update.
- ALIE adds the deviations (divisor h - 1) that are taken off in the paper and here.
- Its searched attacks stop at the first step that is no gain: see `strongest`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from consensus_optax import attacks
from tests._pinned import LARGE, first_update

pytestmark = pytest.mark.slow

F, HONEST = 2, jnp.asarray(LARGE[:8], jnp.float32)
NNM, ARC = co.nearest_neighbor_mixing(F), co.adaptive_clipping(F)
CHOSEN = [0.978316, -0.555394, 0.623147, 1.621057, -0.379927]
AGGREGATED = {
    "median": (co.median(), [0.8957, -0.424286, 0.157831, 1.894129, -0.176853]),
    "trimmed mean": (
        co.trimmed_mean(F),
        [1.025926, -0.239911, 0.27665, 1.567739, -0.218032],
    ),
    "krum": (co.krum(F), [-0.034606, -0.407038, 0.040514, 1.286407, -0.494234]),
    "multi-krum": (co.krum(F, 8), CHOSEN),
    "meamed": (
        co.mean_around_median(F),
        [1.026156, -0.268737, 0.254921, 1.621057, -0.210385],
    ),
    "minimum diameter": (co.minimum_diameter(F), CHOSEN),
    "monna": (co.monna(F, 0), CHOSEN),
    "centered clipping": (
        co.centered_clipping(1.0),
        [0.337477, -0.12848, 0.086536, 0.363463, -0.042824],
    ),
    "mixing, median": (
        co.after(NNM, co.median()),
        [0.978316, -0.555394, 0.512447, 1.621057, -0.379927],
    ),
    "clipping, mean": (
        co.after(ARC, co.mean()),
        [0.892036, -0.399338, 0.347301, 1.004204, -0.053328],
    ),
}
# distances from the honest mean that its searches reach: ALIE, IPM
SEARCHED = {
    "median": (co.median(), 1.158142, 0.820924),
    "trimmed mean": (co.trimmed_mean(F), 1.127192, 0.988333),
    "meamed": (co.mean_around_median(F), 1.185511, 1.187605),
}


@pytest.mark.parametrize(("rule", "theirs"), AGGREGATED.values(), ids=AGGREGATED)
def test_aggregators(rule, theirs):
    np.testing.assert_allclose(first_update(rule, LARGE), theirs, rtol=0, atol=2e-6)


def test_attacks():
    rows = attacks.inner_product_manipulation(HONEST, 1, epsilon=2.0)
    theirs = [-1.969894, 1.143328, -1.059216, -2.445819, 0.61902]
    np.testing.assert_allclose(rows[0], theirs, atol=2e-6)
    np.testing.assert_allclose(
        attacks.sign_flip(HONEST, 1)[0], np.array(theirs) / 2, atol=2e-6
    )
    # tau = 1.5 there: other divisor, other sign
    z = -1.5 * (8 / 7) ** 0.5
    rows = attacks.a_little_is_enough(HONEST, 1, num_deviations=z)
    theirs = [2.30189, 1.40547, 2.146809, 3.767968, 0.599793]
    np.testing.assert_allclose(rows[0], theirs, atol=2e-6)
    np.testing.assert_array_equal(attacks.mimic(HONEST, 1, index=3)[0], HONEST[3])


@pytest.mark.parametrize(("rule", "alie", "ipm"), SEARCHED.values(), ids=SEARCHED)
def test_searched_attacks_go_at_least_as_far(rule, alie, ipm):
    attack, little = attacks.inner_product_manipulation, attacks.a_little_is_enough

    @jax.jit
    def distances(honest):
        one = attacks.search_strength(attack, rule, "epsilon", honest, F)
        # of mirrored rows, since these rules mirror and its ALIE goes the other way
        two = attacks.search_strength(little, rule, "num_deviations", -honest, F)
        return two.distance, one.distance

    found = np.array(distances(HONEST))
    assert np.all(found >= np.array([alie, ipm]) * (1 - 1e-5))
