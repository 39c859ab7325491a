"""What is said of rows of several losses, held to the rows that come."""

import jax
import jax.numpy as jnp
import pytest

import consensus_optax as co

WEIGHTS = {
    "bias": jnp.ones(32),
    "fit": jnp.ones((32, 1)),
    "free": jnp.ones(3),
    "side": jnp.ones((32, 16)),
    "trunk": jnp.ones((64, 32)),
}
BATCH = jnp.ones((8, 64))


def losses(weights, x):
    """A trunk with two heads, one of which has no product, and a penalty."""
    features = jnp.tanh(x @ weights["trunk"] + weights["bias"][None])
    return {
        "fit": jnp.mean((features @ weights["fit"]) ** 2),
        "penalty": jnp.sum(jnp.minimum(weights["side"], 3))
        + 0.5 * jnp.sum(weights["bias"] ** 2),
        "side": jnp.mean((features @ weights["side"]) ** 2),
    }


@pytest.mark.parametrize("size", [{}, {"group_size": 1}, {"num_rows": 4}])
def test_says_who_has_a_gradient_and_where_arrays_end(size, capsys):
    co.explain(losses, WEIGHTS, BATCH, tasks=True, **size)
    said = {line[:10].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert said["rows of 3"] == "rows of 3 losses: ['fit'], ['penalty'], ['side']"
    assert "mul of ['penalty']" in said["['bias']"]
    assert "reduce_sum" in said["['bias']"]
    assert said["['free']"].endswith("array: ends in zero; no loss depends on it")
    assert "; ['fit']" in said["['fit']"]
    assert "of ['penalty'], dot_general" in said["['side']"]
    assert said["['side']"].endswith("['side']; ['penalty'] and ['side']")
    assert said["['trunk']"].endswith("; ['fit'] and ['side']")
    rows = co.task_grad(losses, **size)
    rows = jax.eval_shape(rows, WEIGHTS, BATCH)
    for name, leaf in rows.items():
        factored = " factored: " in said[f"['{name}']"]
        assert factored == co.is_outer_product(leaf)


def test_a_vector_has_numbers_for_names(capsys):
    both = lambda w, x: jnp.stack([jnp.mean(x @ w), jnp.sum(w**2)])
    co.explain(both, WEIGHTS["trunk"], BATCH, tasks=True)
    said = capsys.readouterr().out
    assert said.startswith("rows of 2 losses: [0], [1]\n(root)")
    assert "of [0], " in said


def test_one_loss_is_an_error():
    with pytest.raises(ValueError, match="Several losses are needed"):
        co.explain(lambda w, x: jnp.mean(x @ w), jnp.ones(64), BATCH, tasks=True)
