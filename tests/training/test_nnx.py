"""NNX models with dropout, statistics and counts: rows by hand, and what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from consensus_optax import training
from tests.engines.test_sharded import mesh_of

pytestmark = pytest.mark.standard_promotion  # Flax mixes integers and floats

B = 6
X = jnp.float32(np.random.default_rng(0).normal(size=(B, 3)))
Y = jnp.float32(np.random.default_rng(1).normal(size=(B, 2)))


class Calls(nnx.Variable):
    """How often a model was called."""


class Model(nnx.Module):
    """Everything at once."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.noise = nnx.Dropout(0.25, rngs=rngs.noise.fork())
        self.head = nnx.Linear(4, 2, rngs=rngs)
        self.calls = Calls(jnp.array(0))

    def __call__(self, x):
        self.calls[...] += 1
        hidden = nnx.relu(self.norm(self.linear(x)))
        return self.head(self.noise(self.dropout(hidden)))


def make():
    return Model(nnx.Rngs(0, noise=7))


def loss(model, batch):
    x, y = batch
    with jax.numpy_rank_promotion("allow"):
        predicted = model(x)
    return jnp.mean((predicted - y) ** 2), predicted


def alone(model, i, size):
    """One row as NNX computes it, of a copy with keys of its own."""
    copy = nnx.clone(model)
    keys = nnx.state(copy, nnx.RngKey)
    nnx.update(copy, jax.tree.map(lambda key: jax.random.fold_in(key, i), keys))
    batch = X[i : i + size], Y[i : i + size]
    (value, aux), grads = nnx.value_and_grad(loss, has_aux=True)(copy, batch)
    return value, aux, grads, nnx.state(copy)


# Normalizing two examples takes all from a gradient but what its epsilon leaves: of
# about a hundred terms of size 1 that cancel.
CANCELLED = 100 * float(np.finfo(np.float32).eps)


def assert_close(got, wanted, atol=1e-6):
    got, wanted = map(jax.tree.leaves, (got, wanted))
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol)


ROWS_OF = training.nnx_value_and_rows(loss, has_aux=True, num_rows=3)


def test_rows_and_state_are_those_of_calls_one_by_one():
    model, weights = make(), jnp.array([1.0, 2.0, 0.0])
    values, predicted, grads, states = zip(
        *[alone(model, i, 2) for i in (0, 2, 4)], strict=True
    )
    step = nnx.jit(ROWS_OF)
    (got, aux), rows = step(model, (X, Y), weights=weights)
    assert_close(got, jnp.stack(values))
    assert_close(aux, jnp.concatenate(predicted))
    stack = lambda *leaves: jnp.stack(leaves)
    assert_close(co.materialize(rows), jax.tree.map(stack, *grads))
    for name in ("mean", "var"):
        kept = jnp.stack([state["norm"][name][...] for state in states])
        assert_close(getattr(model.norm, name)[...], (kept[0] + 2 * kept[1]) / 3)
    (other, _), _ = step(model, (X, Y), weights=weights)
    assert not np.allclose(other, got)  # other masks
    assert int(model.calls[...]) == 2
    assert int(model.dropout.rngs.count[...]) == 2
    assert model.dropout.rngs.key[...] == make().dropout.rngs.key[...]


RULE = co.chain(co.clip_examples(0.5), co.sign_consensus(0.6))
WAYS = [{"microbatch_size": 2}, {"microbatch_size": 1}, {"hold_rows": False}]


@pytest.mark.slow
@pytest.mark.parametrize("ways", WAYS, ids=str)
def test_masks_and_statistics_do_not_depend_on_how_rows_are_reduced(ways):
    """Of four rows one is absent, and one is not finite."""
    weights = jnp.array([1.0, 2.0, 0.0, 1.0])
    x = jnp.concatenate([X, X[:2]]).at[6, 0].set(jnp.nan)
    batch = x, jnp.concatenate([Y, Y[:2]])
    given = {"has_aux": True, "num_rows": 4}
    rows_of = training.nnx_value_and_rows(loss, **given)
    reduced = training.nnx_value_and_reduced_grad(loss, RULE, **given, **ways)
    held, model = make(), make()
    params = nnx.state(held, nnx.Param)
    step = nnx.jit(
        lambda model, state: reduced(model, batch, state=state, weights=weights)
    )
    (values, predicted), rows = rows_of(held, batch, weights=weights)
    update, state = RULE.update(rows, RULE.init(params), params, weights=weights)
    (value, aux), got, own = step(model, RULE.init(params))
    assert np.any(update["head"]["kernel"][...])
    assert_close((got, own), (update, state), CANCELLED)
    np.testing.assert_allclose(value, (values[0] + 2 * values[1]) / 3, rtol=1e-5)
    assert_close(aux, predicted)
    numbers = nnx.Not(nnx.RngKey)
    assert_close(nnx.state(model, numbers), nnx.state(held, numbers))
    assert model.dropout.rngs.key[...] == held.dropout.rngs.key[...]


@pytest.mark.slow
def test_rows_that_are_not_finite_leave_nothing_behind():
    model, other = make(), make()
    bad = X.at[0, 0].set(jnp.nan)
    ROWS_OF(model, (bad, Y))
    ROWS_OF(other, (X, Y), weights=jnp.array([0.0, 1.0, 1.0]))
    assert_close(model.norm.mean[...], other.norm.mean[...])
    fresh = make()
    ROWS_OF(fresh, (jnp.full_like(X, jnp.nan), Y))
    assert_close(fresh.norm.mean[...], make().norm.mean[...])


@pytest.mark.slow
def test_every_example_has_a_mask_of_its_own_whatever_the_others_are():
    class Dropped(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(jnp.ones(5))
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.dropout(x * self.scale[...][None])

    rows_of = nnx.jit(training.nnx_value_and_rows(lambda model, x: model(x).mean()))
    _, rows = rows_of(Dropped(), jnp.ones((8, 5)))
    _, few = rows_of(Dropped(), jnp.ones((4, 5)))
    masks = np.asarray(rows["scale"][...])
    assert len(np.unique(masks, axis=0)) > 4
    np.testing.assert_array_equal(masks[:4], few["scale"][...])


@pytest.mark.slow
@pytest.mark.parametrize("check_vma", [True, False])
def test_on_a_mesh_all_is_as_on_one_device(check_vma):
    graph, state = nnx.split(make())

    def of_device(state, x, y):
        model = nnx.merge(graph, jax.tree.map(lambda leaf: leaf, state))
        rows_of = training.nnx_value_and_rows(
            loss, has_aux=True, num_rows=1, axis_name="data"
        )
        (values, _), rows = rows_of(model, (x, y))
        kept = nnx.state(model, nnx.Not(nnx.RngKey))
        return values, co.materialize(rows), kept

    run = jax.shard_map(
        of_device,
        mesh=mesh_of(3),
        in_specs=(P(), P("data"), P("data")),
        out_specs=(P("data"), P("data"), P()),
        check_vma=check_vma,
    )
    model = make()
    (values, _), rows = ROWS_OF(model, (X, Y))
    got = jax.jit(run)(state, X, Y)
    kept = nnx.state(model, nnx.Not(nnx.RngKey))
    assert_close(got, (values, co.materialize(rows), kept))


@pytest.mark.slow
def test_what_is_not_trained_is_not_stacked():
    """LoRA: rows, and nothing else, of the adapters alone."""

    def make():
        return nnx.LoRALinear(16, 16, lora_rank=2, rngs=nnx.Rngs(0))

    fun = lambda model, x: (model(x) ** 2).mean()
    rows_of = training.nnx_value_and_rows(fun, wrt=nnx.LoRAParam, materialize=True)
    _, rows = rows_of(make(), jnp.ones((4, 16)))
    assert sorted(leaf.shape for leaf in jax.tree.leaves(rows)) == [
        (4, 2, 16),
        (4, 16, 2),
    ]
    graph, state = nnx.split(make())

    def pure(state, x):
        model = nnx.merge(graph, jax.tree.map(lambda leaf: leaf, state))
        return jax.tree.leaves(rows_of(model, x))

    program = str(jax.make_jaxpr(pure)(state, jnp.ones((4, 16))))
    assert "f32[4,2,16]" in program
    assert "f32[4,16,16]" not in program


def test_a_count_that_depends_on_the_example_is_an_error():
    class Counter(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(jnp.ones(()))
            self.seen = Calls(jnp.array(0))

        def __call__(self, x):
            self.seen[...] += (x > 0).sum()
            return x * self.scale[...]

    rows_of = training.nnx_value_and_rows(lambda model, x: model(x).mean())
    with pytest.raises(ValueError, match=r"floating where rows differ.*\['seen'\]"):
        rows_of(Counter(), X)


def test_a_loss_that_adds_variables_is_an_error():
    class Adding(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(jnp.ones(()))

        def __call__(self, x):
            self.hidden = nnx.Intermediate(x)
            return x * self.scale[...]

    rows_of = training.nnx_value_and_rows(lambda model, x: model(x).mean())
    with pytest.raises(ValueError, match=r"as `sow` does.*`nnx.pop`"):
        rows_of(Adding(), X)

    def popping(model, x):
        value = model(x).mean()
        return value, nnx.pop(model, nnx.Intermediate)["hidden"][...]

    (_, hidden), _ = training.nnx_value_and_rows(popping, has_aux=True)(Adding(), X)
    np.testing.assert_array_equal(hidden, X)


def test_without_the_maker_the_error_names_it():
    with pytest.raises(ValueError, match=r"NNX model .*training\.nnx_value_and_rows"):
        co.per_example_grad(loss, has_aux=True)(make(), (X, Y))


@pytest.mark.slow
def test_training_goes_on():
    model = make()
    tx = optax.chain(co.mean(), optax.adam(3e-2))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        (values, _), rows = ROWS_OF(model, (X, Y))
        optimizer.update(model, rows)
        return values.mean()

    losses = [float(step(model, optimizer)) for _ in range(60)]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) / 2
