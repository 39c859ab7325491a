"""Each finding on a loss that has the fault, and none on losses that have not."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from consensus_optax import check_per_example

RANDOM = np.random.default_rng(0)
BATCH = (
    jnp.asarray(RANDOM.normal(size=(4, 6)), jnp.float32),
    jnp.asarray(RANDOM.normal(size=4), jnp.float32),
)


class Network(nn.Module):
    """Two layers with whatever stands between them."""

    between: nn.Module

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(self.between(nn.relu(nn.Dense(8)(x))))[:, 0]


def problem(between):
    model = Network(between)
    variables = model.init(jax.random.key(0), BATCH[0])

    def loss(params, batch):
        x, y = batch
        output, _ = model.apply(
            variables | {"params": params}, x, mutable=["batch_stats"]
        )
        return jnp.mean((output - y) ** 2)

    return loss, variables["params"]


def dropout_problem():
    model = Network(nn.Dropout(0.5, deterministic=False))
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    params = model.init(keys, BATCH[0])["params"]

    def loss(params, batch, key):
        x, y = batch
        output = model.apply({"params": params}, x, rngs={"dropout": key})
        return jnp.mean((output - y) ** 2)

    return loss, params


def linear(reduce):
    return lambda w, batch: reduce((batch[0] @ w - batch[1]) ** 2)


pytestmark = [pytest.mark.standard_promotion, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _rank_promotion():
    """Flax's layers add a bias to a batch."""
    with jax.numpy_rank_promotion("allow"):
        yield


def test_nothing_to_say_of_a_sound_loss():
    loss, params = problem(nn.LayerNorm())
    assert check_per_example(loss, params, BATCH) == []
    assert check_per_example(loss, params, BATCH, group_size=2) == []


def test_batch_normalization_of_one_example():
    loss, params = problem(nn.BatchNorm(use_running_average=False))
    (finding,) = check_per_example(loss, params, BATCH)
    assert "Exactly zero in all rows, but not for the batch" in finding
    assert "['Dense_0']['kernel']" in finding
    assert "group_size" in finding


def test_batch_normalization_of_groups_mixes_examples():
    loss, params = problem(nn.BatchNorm(use_running_average=False))
    (finding,) = check_per_example(loss, params, BATCH, group_size=2)
    assert "The mean of the rows is not the gradient of the batch" in finding


def test_a_sum_in_place_of_the_mean():
    (finding,) = check_per_example(linear(jnp.sum), jnp.ones(6), BATCH)
    assert "is the sum of the rows, not their mean" in finding


def test_a_loss_that_mixes_examples():
    (finding,) = check_per_example(linear(jnp.max), jnp.ones(6), BATCH)
    assert "The loss mixes examples" in finding


def test_one_dropout_mask_for_all_rows():
    loss, params = dropout_problem()
    key = jax.random.key(2)
    (shared,) = check_per_example(loss, params, BATCH, key)
    assert "every row draws the same" in shared
    assert check_per_example(loss, params, BATCH, key, prng_argnum=2) == []
    closed = lambda params, batch: loss(params, batch, key)
    assert check_per_example(closed, params, BATCH) == [shared]


def test_a_parameter_that_is_not_used():
    loss = lambda p, batch: linear(jnp.mean)(p["used"], batch)
    params = {"used": jnp.ones(6), "idle": jnp.ones(3)}
    (finding,) = check_per_example(loss, params, BATCH)
    assert "Exactly zero in all rows: ['idle']" in finding


def test_rows_that_are_not_finite():
    loss = lambda w, batch: jnp.mean(jnp.sqrt((batch[0] @ w) ** 2))
    broken = (BATCH[0].at[2].set(0.0), BATCH[1])
    (finding,) = check_per_example(loss, jnp.ones(6), broken)
    assert "Not finite: (root) of row 2" in finding


def test_rows_that_cannot_be_computed_are_a_finding():
    (finding,) = check_per_example(linear(jnp.mean), jnp.ones(6), BATCH, group_size=3)
    assert "The rows cannot be computed. `group_size` must divide" in finding
    (finding,) = check_per_example(lambda w, b: b[0] @ w, jnp.ones(6), BATCH)
    assert "The rows cannot be computed." in finding


def test_options_of_per_example_grad():
    with_aux = lambda w, batch: (linear(jnp.mean)(w, batch), batch[1])
    assert check_per_example(with_aux, jnp.ones(6), BATCH, has_aux=True) == []
    one = lambda w, example: (example[0] @ w - example[1]) ** 2
    assert check_per_example(one, jnp.ones(6), BATCH, keep_batch_dim=False) == []
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (jnp.ones(6), BATCH))
    assert check_per_example(linear(jnp.mean), *low) == []


def contrastive(params, batch):
    features = batch[0] @ params
    logits = features[:, None] * jnp.roll(features, 1)[None, :]
    return -jnp.diagonal(jax.nn.log_softmax(logits)).mean()


def with_penalty():
    loss, params = problem(nn.LayerNorm())
    squares = lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p))
    return lambda p, batch: loss(p, batch) + 1e-3 * squares(p), params


# What is wrong with the loss, and what is said of it; nothing where nothing is.
KINDS = {
    "BatchNorm": (
        lambda: problem(nn.BatchNorm(use_running_average=False)),
        "Exactly zero in all rows, but not for the batch",
    ),
    "one dropout mask": (dropout_problem, "every row draws the same"),
    "contrastive": (
        lambda: (contrastive, jnp.ones(6)),
        "or compares, the examples of a batch",
    ),
    "L2": (with_penalty, "The loss adds a term of the parameters alone"),
    "GroupNorm": (lambda: problem(nn.GroupNorm(2)), None),
    "LayerNorm": (lambda: problem(nn.LayerNorm()), None),
    "frozen statistics": (
        lambda: problem(nn.BatchNorm(use_running_average=True)),
        None,
    ),
    "a mask for each": (dropout_problem, None),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_found_and_what_is_not(name):
    make, wanted = KINDS[name]
    loss, params = make()
    keys = (jax.random.key(2),) if "mask" in name else ()
    options = {"prng_argnum": 2} if name == "a mask for each" else {}
    found = check_per_example(loss, params, BATCH, *keys, **options)
    if wanted is None:
        assert found == []
    else:
        assert len(found) == 1
        assert wanted in found[0]


def test_more_rows_than_can_agree():
    x = jnp.asarray(RANDOM.normal(size=(64, 200)), jnp.float32)
    loss = lambda w, x: jnp.mean((x @ w - 1) ** 2)
    many = check_per_example(loss, jnp.zeros(200), x)
    assert len(many) == 1
    assert many[0].startswith("Of 64 rows all rows agree in sign on 0 % of the coord")
    assert "Of 4 rows, `group_size=` 16 times as large" in many[0]
    assert check_per_example(loss, jnp.zeros(200), x, group_size=16) == []
    assert check_per_example(loss, jnp.zeros(200), x, reducer=co.mean()) == []
    own = check_per_example(loss, jnp.zeros(200), x[:8], reducer=co.sign_consensus())
    assert own == [] or own[0].startswith("Of 8 rows sign_consensus() moves")
    (none,) = check_per_example(loss, jnp.zeros(200), x, reducer=co.cosine_filter(0.1))
    assert none.startswith("Of 64 rows cosine_filter(max_distance=0.1) moves 0 %")
    (few,) = check_per_example(loss, jnp.zeros(200), x[:4], reducer=co.krum(1))
    assert few.startswith("The reducer cannot reduce these rows. `num_byzantine` must")
    with pytest.raises(ValueError, match="`reducer` must be a reducer"):
        check_per_example(loss, jnp.zeros(200), x, reducer="mean")


def test_a_loss_of_one_example_that_takes_no_batch():
    one = lambda w, x: jnp.dot(w, x) ** 2 + 1e-3 * jnp.dot(w, w)
    found = check_per_example(one, jnp.ones(6), BATCH[0], keep_batch_dim=False)
    assert len(found) == 1
    assert "a term of the parameters alone" in found[0]


def two_losses(weights, batch):
    """A fit, and a sum over examples of a head of its own."""
    x, _ = batch
    features = x @ weights["trunk"]
    return {
        "fit": jnp.mean((features @ weights["head"]) ** 2),
        "side": jnp.sum((features @ weights["side"]) ** 2),
        "still": jnp.mean(x**2),
    }


def test_several_losses_are_told_apart():
    normal = lambda *shape: jnp.asarray(np.random.default_rng(4).normal(size=shape))
    weights = {
        "trunk": normal(3, 4),
        "head": normal(4),
        "side": normal(4),
        "nobody": normal(2),
    }
    weights = jax.tree.map(lambda x: x.astype(jnp.float32), weights)
    batch = normal(5, 3).astype(jnp.float32), jnp.zeros(5)
    found = check_per_example(two_losses, weights, batch, tasks=True)
    assert [finding.split(":")[0] for finding in found] == [
        "Loss ['side']",
        "Loss ['still'] has no gradient",
        "Exactly zero in all rows",
    ]
    assert "the sum of the rows" in found[0]
    assert "['nobody']. Does any loss" in found[2]
    fits = lambda w, batch: jnp.stack([jnp.mean((batch[0] @ w) ** 2)] * 2)
    assert check_per_example(fits, weights["trunk"], batch, tasks=True) == []


def test_one_loss_is_not_several():
    found = check_per_example(
        lambda w, x: jnp.mean(x @ w), jnp.ones(6), BATCH[0], tasks=True
    )
    assert "Several losses are needed" in found[0]
