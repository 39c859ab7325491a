"""The probe in a chain: what it says does not depend on where rows come from."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from benchmarks import _flops
from tests.engines.test_sources import SOURCES, in_steps, stacks
from tests.row_transforms.test_chain import InOptax

NAMES = ("mass", "coherence", "gradient_squared", "noise_trace", "group_coherence")
# Rows whose squares are no float32 numbers, or differences of which they tell little.
COARSE = ("nearly equal", "equal", "of size 1e-18", "of size 1e-30", "tiny and far")
GROUPS = {"block": "a", "empty": "b", "layers": "b", "scale": "b"}
PROBES = {
    "gramian": lambda: co.probe(0.5, groups=GROUPS),
    "norms": lambda: co.probe(0.5, groups=GROUPS, reads="norms"),
}
REDUCERS = {"fold": co.sign_consensus, "gramian": lambda: co.cosine_filter(0.9)}


def keeper(reducer, update_of):
    """What the probe has kept after every step."""

    def steps(rows, weights, start):
        def step(state, now):
            _, state = update_of(reducer, now, weights, state)
            return state, {name: optax.tree.get(state, name) for name in NAMES}

        return jax.lax.scan(step, start, rows)[1]

    return steps


@functools.cache
def kept(reads, reducer, way):
    """Name of a number to those of all stacks, (S, STEPS, ...)."""
    names, rows, weights = stacks()
    parts = co.scale_examples(0.5), PROBES[reads](), REDUCERS[reducer]()
    made = InOptax(*parts) if way == "optax" else co.chain(*parts)
    found = in_steps(made, way if way in SOURCES else None, rows, weights, keeper)
    flat, _ = jax.tree_util.tree_flatten_with_path(found)
    return names, {jax.tree_util.keystr(x): np.asarray(y) for x, y in flat}


def cases():
    """One now; in CI one of each source for what the probe reads."""
    for (place, source), reads in itertools.product(enumerate(SOURCES), PROBES):
        reducer = list(REDUCERS)[place % 2]
        quick = (reads, source) == ("gramian", "microbatches of 1")
        marks = () if quick else pytest.mark.whole_zoo
        yield pytest.param(reads, reducer, source, marks=marks)


@pytest.mark.parametrize(("reads", "reducer", "source"), [*cases()])
def test_what_is_kept_does_not_depend_on_the_source(reads, reducer, source):
    names, wanted = kept(reads, reducer, None)
    known = np.array([name not in COARSE for name in names])
    _, squares = kept("gramian", "gramian", None)
    for way in (source, "optax"):
        _, got = kept(reads, reducer, way)
        for name, value in wanted.items():
            # numbers of the noise are differences of squares of this size, of 29
            # products each, summed over 12 rows
            size = np.abs(value)
            if "squared" in name or "trace" in name:
                size = np.abs(squares["['gradient_squared']"])
                size = size + np.abs(squares["['noise_trace']"])
            with np.errstate(invalid="ignore"):
                near = np.abs(got[name] - value) <= 2e-5 * size
            near |= ~np.isfinite(value) & ~np.isfinite(got[name])
            wrong = [
                n
                for n, k, x in zip(names, known, near, strict=True)
                if k and not x.all()
            ]
            assert not wrong, name


def test_probe_and_filter_share_one_gramian():
    """Of 24 rows of 3 layers, arrays: what the probe adds is numbers of pairs."""
    random = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    rows = [normal(24, 16, 64) for _ in range(3)]
    params = [jnp.zeros((16, 64)) for _ in rows]
    alone, probed = co.cosine_filter(), co.chain(co.probe(), co.cosine_filter())

    def count(rule):  # of rows at their own scale, as which branch is taken tells
        graph = jax.make_jaxpr(rule.update)(rows, rule.init(params), params)
        return _flops.of_products(graph.jaxpr, 1)

    one_gramian = 2 * 24**2 * 3 * 16 * 64
    assert count(probed) - count(alone) < one_gramian / 3
    assert count(alone) > one_gramian


def loss(weights, batch):
    x, y = batch
    for w in weights["layers"]:
        x = jnp.tanh(x @ w) * weights["scale"][None, None]
    return jnp.mean((x - y) ** 2)


def test_norms_of_few_leaves_cost_next_to_nothing():
    """Those of the scale alone, of a network of three layers of 64 by 64."""
    weights = {"layers": [jnp.eye(64)] * 3, "scale": jnp.ones(64)}
    batch = jnp.ones((32, 8, 64)), jnp.zeros((32, 8, 64))
    mask = {"layers": False, "scale": True}
    alone = co.mean()
    every = co.chain(co.probe(reads="norms"), co.mean())
    few = co.chain(co.probe(reads="norms", mask=mask), co.mean())

    def count(rule):
        step = co.value_and_reduced_grad(loss, rule)
        run = jax.jit(lambda s: step(weights, batch, state=s)[1])
        return run.lower(rule.init(weights)).compile().cost_analysis()["flops"]

    one_combination = 2 * 32 * 8 * 64 * 64
    assert count(few) - count(alone) < one_combination / 10
    assert count(every) - count(alone) > one_combination


def test_a_private_sum_may_be_looked_at():
    key = jax.random.key(0)
    private = co.private_sum(1.0, divisor=2, noise_multiplier=0.0, key=key)
    chain, params = co.chain(co.probe(), private), jnp.zeros(2)
    rows = jnp.array([[0.0, 4.0], [0.5, 0.0]])
    update, state = jax.jit(chain.update)(rows, chain.init(params), params)
    wanted, _ = jax.jit(private.update)(rows, private.init(params), params)
    np.testing.assert_array_equal(update, wanted)
    assert optax.tree.get(state, "coherence") == 1
    assert chain.sensitivity == private.sensitivity
