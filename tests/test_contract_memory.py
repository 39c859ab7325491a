"""What is remembered like the parameters is found as these are, by `map_params`.

Shardings of states are made so; and by paths, which end as the parameter's do.
"""

import jax
import jax.numpy as jnp
import optax
import pytest

import consensus_optax as co
from tests._stacks import B
from tests.zoo import EVERY_FACTORY

pytestmark = pytest.mark.standard_promotion  # optax mixes its counts with floats

PARAMS = {"w": jnp.ones((5, 3)), "layers": [jnp.ones(7)], "ids": jnp.arange(4)}
EXAMPLES = {"w": jnp.ones((B, 5, 3)), "layers": [jnp.ones((B, 7))]}
EXAMPLES["ids"] = jnp.zeros((B, 4), jnp.int32)
NAMES = jax.tree_util.tree_map_with_path(
    lambda path, _: jax.tree_util.keystr(path), PARAMS
)
ADAM = optax.adam(1e-3)
FROZEN = {"w": False, "layers": True, "ids": False}
WITH_A_MEMORY = {
    "per_leaf": lambda: co.per_leaf(co.subspace_weighting(momentum=0.5, num_rows=B)),
    "row_momentum": lambda: co.chain(
        co.row_momentum(0.5, B), co.centered_clipping(1.0)
    ),
    "probe": lambda: co.chain(co.probe(groups=co.diagnostics.leaf_names), co.mean()),
    "among": lambda: co.among(co.cosine_filter(), co.scale_by_example_moments()),
    "accumulate": lambda: co.accumulate(co.centered_clipping(1.0), 2, like=EXAMPLES),
    "buffered": lambda: co.federated.buffered(co.centered_clipping(1.0), 3),
    "error_feedback": lambda: optax.chain(
        co.error_feedback(co.compressors.top_k(0.5), B), co.mean(), ADAM
    ),
    "magma": lambda: optax.chain(co.mean(), co.magma(ADAM, jax.random.key(0))),
    "agreement": lambda: optax.chain(
        co.mean(), co.ema_agreement(), co.temporal_and_mask(), co.proximal(0.1)
    ),
    "median": lambda: optax.chain(
        co.mean(), co.median_of_three_steps(), co.cautious(ADAM)
    ),
    "partition": lambda: co.partition({0: co.centered_clipping(1.0)}, lambda _: 0),
}


def assert_parameters_are_found(optimizer):
    """Before and after a step, each named as its parameter, and nothing else is."""
    of_shape = {(5, 3): NAMES["w"], (7,): NAMES["layers"][0]}
    state = optimizer.init(PARAMS)
    _, new = jax.eval_shape(optimizer.update, EXAMPLES, state, PARAMS)
    for kept in (state, new):
        found = optax.tree.map_params(
            optimizer,
            lambda leaf, name: name,
            kept,
            NAMES,
            transform_non_params=lambda _: None,
        )
        wanted = jax.tree.map(lambda leaf: of_shape.get(leaf.shape), kept)
        pairs = jax.tree_util.tree_leaves_with_path(found)
        moving = [name for _, name in pairs if "ids" not in name]
        assert moving == jax.tree.leaves(wanted)
        for path, name in pairs:
            assert jax.tree_util.keystr(path).endswith(name)


@pytest.mark.parametrize("row", EVERY_FACTORY)
def test_what_a_rule_remembers_is_found_as_parameters_are(row):
    assert_parameters_are_found(row.make(num_rows=B))


@pytest.mark.parametrize("make", WITH_A_MEMORY.values(), ids=WITH_A_MEMORY)
def test_what_transformations_remember_is_found_as_parameters_are(make):
    assert_parameters_are_found(make())


def test_parameters_that_move_are_found_beside_frozen_ones():
    optimizer = co.freeze(optax.chain(co.centered_clipping(1.0), ADAM), FROZEN)
    found = optax.tree.map_params(
        optimizer,
        lambda leaf, name: None if isinstance(leaf, optax.MaskedNode) else name,
        optimizer.init(PARAMS),
        NAMES,
        transform_non_params=lambda _: None,
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )
    assert jax.tree.leaves(found) == ["['ids']", "['w']"] * 3
