"""Losses that say how they are cut over a mesh, as those of large models do."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from tests._models import assert_close as leaf_close

ROWS, LENGTH, WIDTH, HIDDEN, WORDS = 8, 4, 16, 32, 12
MESH = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def uncut(x, *_):
    return x


def cut(x, *spec):
    return jax.lax.with_sharding_constraint(x, NamedSharding(MESH, P(*spec)))


def assert_close(x, y):
    """Sums of few terms, which the devices add up in another order."""
    jax.tree.map(lambda *leaves: leaf_close(*leaves, 1e-5), x, y)


def dense(x, w):
    return x @ w


def over_model(x, w):
    """The same product by hand over another axis of the mesh."""
    return jax.shard_map(
        lambda x, w: jax.lax.psum(x @ w, "model"),
        mesh=MESH,
        in_specs=(P(None, None, "model"), P("model")),
        out_specs=P(),
    )(x, w)


def decoder(down=dense, cut=cut):
    """Activations cut by batch and width, weights by both; scanned, remade layers."""

    def block(h, layer):
        up = cut(layer["up"], "data", "model")
        wide = cut(jax.nn.silu(h @ up), "data", None, "model")
        h = h + down(wide, cut(layer["down"], "model", "data"))
        return cut(h, "data", None, None), None

    def loss(params, tokens):
        h = cut(params["words"][tokens], "data", None, None)
        h, _ = jax.lax.scan(jax.checkpoint(block), h, params["layers"])
        logits = cut(h @ params["words"].T, "data", None, "model")
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)
        return -picked.mean()

    return loss


def given(count=ROWS):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / 4, jnp.float32)
    layers = {"up": draw(2, WIDTH, HIDDEN), "down": draw(2, HIDDEN, WIDTH)}
    tokens = jnp.asarray(rng.integers(0, WORDS, (count, LENGTH)))
    specs = {"up": P(None, "data", "model"), "down": P(None, "model", "data")}
    put = lambda x, spec: jax.device_put(x, NamedSharding(MESH, spec))
    layers = {name: put(x, specs[name]) for name, x in layers.items()}
    params = {"words": put(draw(WORDS, WIDTH), P()), "layers": layers}
    return params, put(tokens, P("data"))


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile()


def on_one_device(params, tokens, group_size=1):
    """Rows of the same loss without a mesh."""
    params, tokens = jax.tree.map(np.asarray, (params, tokens))
    groups = tokens.reshape(-1, group_size, LENGTH)
    rows_of = jax.vmap(jax.grad(decoder(cut=uncut)), (None, 0))
    return jax.tree.map(np.asarray, jax.jit(rows_of)(params, groups))


@pytest.mark.slow
@pytest.mark.parametrize("name", [None, "data"])
def test_constraints_by_the_rows_axis_are_of_the_rows(name):
    loss, (params, tokens) = decoder(), given()
    rows_of = co.per_example_grad(loss, spmd_axis_name=name)
    rows = jax.jit(rows_of)(params, tokens)
    assert isinstance(rows["layers"]["up"], co.OuterProduct)
    assert isinstance(rows["layers"]["down"], co.OuterProduct)
    assert rows["layers"]["up"].right.sharding.spec[0] == "data"
    expected = on_one_device(params, tokens)
    assert_close(co.materialize(rows), expected)
    text = compiled(
        lambda *args: co.mean().update(rows_of(*args), co.mean().init(params), params)[
            0
        ],
        params,
        tokens,
    ).as_text()
    assert not re.findall(r" all-to-all\(", text)


def test_without_it_rows_would_be_dealt_out_by_width():
    """What is prevented: the names stay on an axis of one example."""
    loss, (params, tokens) = decoder(), given()
    by_hand = lambda params, tokens: jax.vmap(jax.grad(loss), (None, 0))(
        params, tokens[:, None]
    )
    assert re.findall(r" all-to-all\(", compiled(by_hand, params, tokens).as_text())


@pytest.mark.parametrize("group_size", [2, 4])
def test_groups(group_size):
    """Of 8 examples 4 rows are cut, 2 rows cannot be; neither changes a number."""
    loss, (params, tokens) = decoder(), given()
    rows_of = co.per_example_grad(loss, group_size=group_size)
    rows = co.materialize(jax.jit(rows_of)(params, tokens))
    assert_close(rows, on_one_device(params, tokens, group_size))


def test_a_shard_map_in_the_loss_needs_the_name():
    loss, (params, tokens) = decoder(over_model), given()
    counts = {}
    for name in (None, "data"):
        rows_of = co.per_example_grad(loss, materialize=True, spmd_axis_name=name)
        program = compiled(rows_of, params, tokens)
        counts[name] = program.cost_analysis()["flops"]
        rows = program(params, tokens)
        assert_close(rows, on_one_device(params, tokens))
    assert counts["data"] < 0.6 * counts[None]


@pytest.mark.slow
def test_microbatches_and_explain_take_it(capsys):
    loss, (params, tokens) = decoder(), given()
    options = {"spmd_axis_name": "data"}
    rule = co.sign_consensus()
    state = rule.init(params)
    run = lambda size: jax.jit(
        lambda p, x: co.value_and_reduced_grad(
            loss, rule, microbatch_size=size, **options
        )(p, x, state=state)
    )(params, tokens)
    (value, update, _), (other, same, _) = run(None), run(4)
    np.testing.assert_allclose(value, other, rtol=1e-6)
    assert_close(update, same)
    co.explain(loss, params, tokens, **options)
    assert capsys.readouterr().out.count("factored: 2 layers") == 2


def test_what_names_no_axis():
    with pytest.raises(ValueError, match="`spmd_axis_name` must be the name of a mesh"):
        co.per_example_grad(decoder(), spmd_axis_name=0)
