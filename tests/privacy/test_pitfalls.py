"""The twelve pitfalls that jax_privacy's documentation lists: what happens here.

docs/privacy.md has the table; there is one test for each line of it, in its order.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from consensus_optax import privacy
from tests._stacks import first_update

KEY = jax.random.key(11)


def private(**options):
    given = {"max_norm": 1.0, "divisor": 4.0, "noise_multiplier": 1.0, "key": KEY}
    return co.private_sum(**(given | options))


def moved(rule, rows, weights):
    """By how much the update moves when the first row goes."""
    weights = jnp.asarray(weights, jnp.float32)
    there, _ = first_update(rule, rows, weights=weights)
    gone, _ = first_update(rule, rows, weights=weights.at[0].set(0))
    return float(np.linalg.norm(np.asarray(there, float) - np.asarray(gone, float)))


def test_division_by_batch_size():
    """By what was said, not by how many rows are there: a mean moves by eight times."""
    rows = jnp.array([[9.0, 0.0], [0.0, 9.0], [jnp.nan, 0.0]])
    mean = optax.chain(co.clip_examples(1.0), co.mean())
    update = jax.jit(lambda x: mean.update(x, mean.init(rows[0]), rows[0])[0])
    assert np.linalg.norm(update(rows) - update(rows[1:])) > 0.7
    assert moved(co.clipped_sum(1.0, divisor=8.0), rows, jnp.ones(3)) <= 1 / 8


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_norm": 3.0},
        {"divisor": 100.0},
        {"clipping": "automatic"},
        {"per_leaf": True},
    ],
    ids=str,
)
def test_sensitivity_alignment(options):
    """Noise is z times the sensitivity that the rule says, whatever its options.

    Within 5 deviations of 4000 numbers: by chance not in 6e-7.
    """
    rule = private(noise_multiplier=2.0, **options)
    noise, _ = first_update(rule, jnp.zeros((1, 4000)))
    assert float(noise.std()) == pytest.approx(
        2 * rule.sensitivity, rel=5 / np.sqrt(8000)
    )


def test_accounting_and_batch_selection_mismatch():
    """One object draws the batches and is accounted for, what is cut off too."""
    pytest.importorskip("dp_accounting", reason="the extra `privacy` has it")
    sampling = privacy.PoissonSampling(100, 0.2, num_steps=3, max_size=30)
    event = privacy._accounting._event(1.5, sampling)
    one = event.event
    assert (event.count, one.dataset_size, one.truncated_batch_size) == (3, 100, 30)
    assert (one.sampling_probability, one.noise_multiplier) == (0.2, 1.5)
    whole = privacy._accounting._event(1.5, sampling._replace(max_size=100)).event
    assert (whole.sampling_probability, whole.event.noise_multiplier) == (0.2, 1.5)


def neighbours():
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32)
    return rows, rows.at[2].set(jnp.nan), rows.at[2].set(1e3)


def states():
    return [first_update(private(), rows)[1] for rows in neighbours()]


def test_public_and_private_metadata():
    """Of a state, data decides counts alone; plans of a run know no data at all."""
    changed = {"num_present", "num_nonfinite", "num_accepted", "rule_state"}
    first, *others = states()
    for other in others:
        for name in set(first._fields) - changed:
            assert getattr(first, name) == getattr(other, name), name
        assert first.rule_state.max_norm == other.rule_state.max_norm
    shapes = lambda rows: jax.eval_shape(private().init, rows[0])
    assert shapes(neighbours()[0]) == jax.eval_shape(lambda: first)
    plan = privacy.PoissonSampling(100, 0.2, num_steps=3, max_size=30)
    assert all(isinstance(field, int | float) for field in plan)


def test_neighbouring_relation():
    """C / d is for a row that comes or goes; one for another may move twice as far."""
    rule, rows = co.clipped_sum(1.0, divisor=4.0), jnp.array([[5.0], [1.0]])
    assert moved(rule, rows, [1, 1]) <= rule.sensitivity
    replaced, _ = first_update(rule, rows.at[0].set(-5.0))
    apart = abs(float(first_update(rule, rows)[0][0] - replaced[0]))
    assert rule.sensitivity < apart <= 2 * rule.sensitivity
    assert "2 C / d" in co.clipped_sum.__doc__


def test_empty_batches_and_rows_that_are_not_finite():
    """An empty batch is noise like any; a broken row is zero and costs no other row."""
    rows, broken, _ = neighbours()
    noise, _ = first_update(private(), rows, weights=jnp.zeros(6))
    wanted, _ = first_update(private(), rows * 0)
    np.testing.assert_array_equal(noise, wanted)
    assert noise.all()
    got, state = first_update(private(), broken)
    without, _ = first_update(private(), rows, weights=jnp.ones(6).at[2].set(0))
    np.testing.assert_array_equal(got, without)
    assert state.num_nonfinite == 1


def test_gradient_accumulation():
    """Microbatches are of one sum with one noise; what adds around it is an error."""
    rows, _, far = neighbours()
    loss = lambda params, batch: jnp.vdot(params, batch[0])
    step = co.value_and_reduced_grad(loss, private(), microbatch_size=2)
    params = jnp.zeros(5)
    for batch in (rows, far):
        _, got, _ = jax.jit(step)(params, batch, state=private().init(params))
        # sums of six numbers of about 1, in another order
        np.testing.assert_allclose(got, first_update(private(), batch)[0], atol=1e-6)
    around = optax.MultiSteps(optax.chain(private(), optax.sgd(1.0)), 2)
    with pytest.raises((TypeError, ValueError)):
        around.update(rows, around.init(params), params)


def test_operations_across_examples():
    """Rows are of single examples, so sums are bounded; the probe says who mixes."""

    def normalized(params, x):
        x = (x - x.mean(0, keepdims=True)) / (1e-3 + x.std(0, keepdims=True))
        return jnp.mean((x @ params - 1) ** 2)

    params, batch = jnp.ones(3), jax.random.normal(KEY, (4, 3))
    assert co.check_per_example(normalized, params, batch)
    rows = co.per_example_grad(normalized)(params, batch)
    other = co.per_example_grad(normalized)(params, batch.at[0].set(100.0))
    rows, other = co.materialize((rows, other))
    np.testing.assert_array_equal(rows[1:], other[1:])


def test_auxiliary_information():
    """What is not private is said where it is returned, and is in no update."""
    for factory in (co.private_sum, co.clipped_sum, privacy.clipped_grad):
        assert "not private" in factory.__doc__.replace("\n", " ").lower()
    first, broken, far = states()
    assert broken.num_nonfinite > first.num_nonfinite  # exact, so not to be published
    assert far.rule_state.num_clipped >= first.rule_state.num_clipped


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_randomness(implementation):
    """Keys are given, of any generator; every step and every key has its own noise."""
    with pytest.raises(TypeError, match="key"):
        co.private_sum(1.0, divisor=1.0, noise_multiplier=1.0)
    rows, updates = jnp.zeros((1, 50)), []
    for seed in (1, 2):
        rule = private(key=jax.random.key(seed, impl=implementation))
        state = rule.init(rows[0])
        for _ in range(2):
            update, state = jax.jit(rule.update)(rows, state, rows[0])
            updates.append(np.asarray(update))
    assert all((x != y).all() for i, x in enumerate(updates) for y in updates[:i])


def test_floating_point_robustness():
    """Noise has the digits of the sum, and is no discrete mechanism, as is said."""
    narrow, _ = first_update(private(divisor=1.0), jnp.zeros((1, 999), jnp.bfloat16))
    wide, _ = first_update(private(divisor=1.0), jnp.zeros((1, 999)))
    np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))
    with jax.enable_x64(True):
        double, _ = first_update(private(divisor=1.0), jnp.zeros((1, 999), float))
        assert double.dtype == jnp.float64
        assert (double != double.astype(jnp.float32).astype(jnp.float64)).any()


def test_finite_precision():
    """Rows that plain clipping in float32 leaves too long by a rounding are not."""
    random = np.random.default_rng(5)
    rows = jnp.asarray(random.normal(size=(200, 1, 30)), jnp.float32)
    lengths = lambda update: np.linalg.norm(np.asarray(update, float), axis=-1)
    plain = jax.jit(jax.vmap(lambda row: row[0] / jnp.linalg.norm(row)))(rows)
    rule = co.clipped_sum(1.0)
    clipped = lambda row: rule.update(row, rule.init(row[0]), row[0])[0]
    ours = jax.jit(jax.vmap(clipped))(rows)
    assert lengths(plain).max() > 1
    assert 1 - 1e-4 < lengths(ours).min() <= lengths(ours).max() <= 1


@pytest.mark.parametrize("known", [False, True])
def test_what_is_kept_from_step_to_step(known):
    """The one of ours: a row of the first step alone, in place 0 or as client 5."""
    momentum = co.row_momentum(0.9, 6 if known else 2)
    chain = optax.chain(momentum, co.clipped_sum(1.0, divisor=1.0))
    clients = np.array([[5, 1], [2, 1], [3, 1]])

    @jax.jit
    def steps(first):
        params, updates = jnp.zeros(2), []
        state = chain.init(params)
        for number, who in enumerate(clients):
            rows = jnp.stack([first if number == 0 else jnp.ones(2), jnp.ones(2)])
            told = {"clients": jnp.asarray(who)} if known else {}
            update, state = chain.update(rows, state, params, **told)
            updates.append(update)
        return jnp.stack(updates)

    gap = np.linalg.norm(
        steps(jnp.array([0.0, 1.0])) - steps(jnp.array([1.0, 0.0])), axis=1
    )
    assert gap[0] > 0.1  # a tenth of the root of two
    assert (gap[1:] == 0).all() == known
