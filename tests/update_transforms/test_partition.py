"""Rules by parameter: labels that are a function see parameters, whatever comes in."""

import jax
import jax.numpy as jnp
import optax
import pytest

import consensus_optax as co
from tests._models import array, assert_close

PARAMS = {"b": array(0, 12), "w": array(1, 8, 12), "deep": {"v": array(2, 12, 3)}}
X = array(3, 5, 8)


def loss(p, x):
    return jnp.mean((jnp.tanh(x @ p["w"] + p["b"][None]) @ p["deep"]["v"]) ** 2)


LABELS = {
    "by axes": lambda tree: jax.tree.map(
        lambda leaf: "matrix" if leaf.ndim == 2 else "vector", tree
    ),
    "by path": lambda tree: jax.tree_util.tree_map_with_path(
        lambda path, leaf: "vector" if path[0].key == "b" else "matrix", tree
    ),
    "prefix": {"b": "vector", "w": "matrix", "deep": "matrix"},
}


def rules():
    train = lambda rule: optax.chain(rule, optax.sgd(-1.0))
    return {"matrix": train(co.sign_consensus(0.6)), "vector": train(co.mean())}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("held", ["arrays", "factors"])
def test_each_leaf_is_reduced_by_the_rule_of_its_label(kind, held):
    optimizer = co.partition(rules(), LABELS[kind])

    @jax.jit
    def update(params, x):
        rows = co.per_example_grad(loss, materialize=held == "arrays")(params, x)
        return optimizer.update(rows, optimizer.init(params), params)[0]

    rows = co.per_example_grad(loss, materialize=True)(PARAMS, X)
    matrices, rule = {"w": rows["w"], "v": rows["deep"]["v"]}, co.sign_consensus(0.6)
    like = jax.tree.map(lambda leaf: leaf[0], matrices)
    wanted = rule.update(matrices, rule.init(like), like)[0]
    found = update(PARAMS, X)
    assert_close(found["b"], rows["b"].mean(0), 1e-5)
    assert_close(found["w"], wanted["w"], 1e-5)
    assert_close(found["deep"]["v"], wanted["v"], 1e-5)


def test_without_params_nobody_knows_the_labels():
    optimizer = co.partition(rules(), LABELS["by axes"])
    with pytest.raises(ValueError, match=r"`co\.partition` needs `params`"):
        optimizer.update(PARAMS, optimizer.init(PARAMS))
