"""Factors of weights that are scaled, cut, strung together, or one of several."""

import jax
import jax.numpy as jnp
import pytest

import consensus_optax as co
from tests._models import ROWS, WIDTH, array, assert_close, assert_rows, square
from tests._used_otherwise import USED_OTHERWISE

pytestmark = pytest.mark.standard_promotion  # models mix types as their libraries do


@pytest.mark.parametrize("name", USED_OTHERWISE)
def test_rows_are_those_of_vmap_of_grad(name):
    assert_rows(USED_OTHERWISE[name](), 5e-6)  # float32 rounding through all layers


def test_explain_says_why_products_are_arrays(capsys):
    params = {"read": array(0, WIDTH, 32), "sum": array(1, 32, WIDTH)}
    params |= {"carried": array(2, ROWS), "small": array(3, 2, 2)}

    def loss(p, x):
        otherwise = jnp.einsum("bi,ijk->bk", x[:, :4], p["read"].reshape(4, 4, 32))
        x = jnp.tanh(x @ p["read"] + otherwise) @ p["sum"]
        step = lambda x, _: (x + p["carried"][None, :1], None)
        x = jax.lax.scan(step, x, None, length=2)[0]
        return square(x) + x.mean() * square(p["sum"]) + square(x[:, :2] @ p["small"])

    co.explain(loss, params, array(4, ROWS, WIDTH))
    said = capsys.readouterr().out
    for line in (
        "array: ends in dot_general, which is read as an array before",
        "dot_general, a sum of which not all are products",
        "array: ends in dot_general, which is no larger multiplied out",
    ):
        assert line in said
    assert "ends in\n" not in said
    assert "ends in \n" not in said


def test_explain_says_where_other_arrays_end(capsys):
    params = {"normed": array(0, WIDTH, 32), "either": array(1, 32, WIDTH)}

    def loss(p, x):
        length = jnp.linalg.norm(p["normed"], axis=0, keepdims=True)
        x = jnp.tanh(x @ (p["normed"] / length))
        one, other = lambda w: x @ w, lambda w: jnp.tanh(x @ w)
        return square(jax.lax.cond(x.sum() > 0, one, other, p["either"]))

    co.explain(loss, params, array(4, ROWS, WIDTH))
    said = capsys.readouterr().out
    assert "array: ends in select_n" in said
    assert "dot_general + mul, a sum of which not all are products" in said


@pytest.mark.parametrize("heads", [1, 3])
def test_explain_tells_an_axis_of_heads_from_that_of_examples(capsys, heads):
    """What all share is multiplied with each: examples are no batch axis of that."""
    shared = array(0, heads, 5, 4)

    def loss(p, x):
        y = jnp.einsum("hnm,hmk->hnk", shared, p)
        return ((y * x.mean() + x.sum()) ** 2).mean()

    co.explain(loss, array(1, heads, 4, 2), array(2, ROWS, heads))
    said = capsys.readouterr().out
    assert "array: ends in dot_general without an example axis\n" in said


@pytest.mark.parametrize("mode", ["clip", "fill"])
def test_windows_that_begin_elsewhere(mode):
    """Clipped, every start in a line is its first entry; filled, it is outside."""
    dims = jax.lax.GatherDimensionNumbers((1, 2), (), (0, 1))

    def loss(table, starts):
        windows = jax.lax.gather(table, starts[0], dims, (1, WIDTH), mode=mode)
        return square(windows)

    table, starts = array(0, 40, WIDTH), jnp.arange(ROWS * 6).reshape(ROWS, 3, 2)
    rows = co.per_example_grad(loss)(table, starts % 5)
    one = lambda table, starts: jax.grad(loss)(table, starts[None])
    assert_close(
        co.materialize(rows), jax.vmap(one, (None, 0))(table, starts % 5), 2e-6
    )  # float32 rounding
    assert co.is_outer_product(rows) == (mode == "clip")


@jax.custom_vjp
def squared_moment(w, s):
    """Its second argument's gradient is the square of the first's."""
    del s
    return w


squared_moment.defvjp(lambda w, s: (w, None), lambda _, g: (g, g * g))


@jax.custom_vjp
def of_three(w, v, s):
    del s
    return w + v


of_three.defvjp(lambda w, v, s: (w + v, None), lambda _, g: (g, 2 * g, g * (2 * g)))


@jax.custom_vjp
def inside(w):
    """Its gradient is one around that of what it gives."""
    return w[1:-1]


inside.defvjp(
    lambda w: (w[1:-1], None),
    lambda _, g: (jnp.pad(g, ((1, 1), (0, 0)), constant_values=1.0),),
)
TABLES = {name: array(i, 24, 24) for i, name in enumerate("wvs")}
OF_THEIR_OWN = {
    "square": lambda p, x: x @ squared_moment(p["w"], p["s"]),
    "product": lambda p, x: x @ of_three(p["w"], p["v"], p["s"]),
    "ones around": lambda p, x: x[..., :22] @ inside(p["w"]),
}


@pytest.mark.parametrize("name", OF_THEIR_OWN)
def test_what_a_rule_of_ones_own_makes_of_a_gradient(name):
    """Two factored gradients multiplied, and an edge that is not zero: no factors."""
    loss = lambda p, x: square(OF_THEIR_OWN[name](p, x))
    x = array(9, ROWS, 3, 24)
    found = co.materialize(co.per_example_grad(loss)(TABLES, x))
    wanted = jax.vmap(jax.grad(loss), (None, 0))(TABLES, x[:, None])
    jax.tree.map(lambda got, own: assert_close(got, own, 5e-6), found, wanted)
