"""Gradients stopped before their last contraction are exact, for any model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from consensus_optax._rows import verbs
from consensus_optax._rows.outer_product import restored
from consensus_optax._rows.statistics import MINMOD, WEIGHTED_MAGNITUDE, WEIGHTED_SUM
from consensus_optax._rows.views import reshaped, row_matrix, transposed
from tests._models import MODELS, array, assert_close, assert_rows, square

pytestmark = pytest.mark.standard_promotion  # models mix types as their libraries do


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_those_of_vmap_of_grad(name):
    # bfloat16 products are summed in another order; else float32 rounding
    assert_rows(MODELS[name](), 2e-2 if name == "mixed_precision" else 2e-6)


@pytest.mark.parametrize("group_size", [1, 2])
@pytest.mark.parametrize(
    "name", ["mlp", pytest.param("transformer", marks=pytest.mark.slow)]
)
def test_groups_are_rows(name, group_size):
    model = MODELS[name]()
    rows = co.per_example_grad(model.loss, group_size=group_size)
    given = jax.tree.leaves(co.materialize(rows(model.params, model.batch)))
    parts = [model.batch[i : i + group_size] for i in range(0, 4, group_size)]
    grads = [jax.tree.leaves(jax.grad(model.loss)(model.params, p)) for p in parts]
    for x, *expected in zip(given, *grads, strict=True):
        assert_close(x, jnp.stack(expected), 2e-6)  # float32 rounding


@pytest.mark.slow
def test_every_verb_agrees_on_factors_and_arrays():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    dtype, order = jnp.float32, jnp.arange(5)
    weights, matrix = draw(5), draw(5, 5)
    no_short_cut = WEIGHTED_SUM._replace(of_products=None)
    statistics = (MINMOD, WEIGHTED_MAGNITUDE, no_short_cut)
    products = {
        "one term": co.OuterProduct(draw(5, 1, 6), draw(5, 1, 7), (6, 7)),
        "terms": co.OuterProduct(draw(5, 3, 6), draw(5, 3, 7), (6, 7)),
        "moved": transposed(
            co.OuterProduct(draw(5, 2, 6), draw(5, 2, 4), (6, 2, 2)), (1, 0, 2)
        ),
        "reshaped": reshaped(
            co.OuterProduct(draw(5, 2, 6), draw(5, 2, 4), (6, 4)), (2, 3, 4)
        ),
        "layers": co.OuterProduct(draw(5, 3, 1, 6), draw(5, 3, 1, 7), (3, 6, 7)),
        "layers of terms": co.OuterProduct(
            draw(5, 3, 2, 6), draw(5, 3, 2, 4), (3, 6, 2, 2)
        ),
        "layers moved": reshaped(
            transposed(
                co.OuterProduct(draw(5, 4, 2, 6), draw(5, 4, 2, 4), (2, 2, 6, 4)),
                (2, 0, 3, 1),
            ),
            (12, 8),
        ),
        "layers, few entries": co.OuterProduct(
            draw(5, 2, 9, 3), draw(5, 2, 9, 4), (2, 3, 4)
        ),
        "look-up": co.OuterProduct(
            jnp.asarray(rng.integers(-1, 7, (5, 3))), draw(5, 3, 4), (6, 4)
        ),
        "look-up, many": co.OuterProduct(
            jnp.asarray(rng.integers(0, 3, (5, 9))), draw(5, 9, 2), (3, 2)
        ),
    }

    def every_verb(leaf, direction):
        mixed = verbs.Mixed(matrix, leaf, order)
        return [
            verbs.gramian(leaf, dtype),
            verbs.cross_gramian(leaf, verbs.scale(leaf, weights), dtype),
            *(verbs.squared_norms(of, dtype) for of in (leaf, mixed)),
            *(verbs.combine(of, weights, order) for of in (leaf, mixed)),
            *(verbs.inner_products(of, direction) for of in (leaf, mixed)),
            *verbs.fold(leaf, statistics, weights, order),
            *verbs.fold(mixed, statistics, weights, order),
            verbs.as_array(verbs.scale(leaf, weights), dtype),
            verbs.as_array(verbs.signs(leaf, dtype), dtype),
        ]

    for name, leaf in products.items():
        rows = leaf.materialize()
        assert rows.shape == leaf.shape, name
        for i in range(5):
            assert_close(restored(leaf, row_matrix(leaf, i)), rows[i], 2e-6)  # as below
        direction = draw(*leaf.shape[1:])
        compare = jax.jit(lambda *of: [every_verb(x, of[0]) for x in of[1:]])
        for x, y in zip(*compare(direction, leaf, rows), strict=True):
            assert_close(x, y, 2e-6)  # float32 rounding


def test_look_ups_outside_the_table_are_dropped():
    leaf = co.OuterProduct(jnp.array([[0, -1, 9]]), jnp.ones((1, 3, 2)), (4, 2))
    assert leaf.materialize()[0].tolist() == [[1, 1], [0, 0], [0, 0], [0, 0]]


def test_what_a_second_use_makes_of_a_factored_gradient_is_right():
    """A gradient that also enters the value is multiplied out where it does."""
    x, w = array(0, 4, 16), array(1, 16, 16)

    def value_and_grad(w, x):
        inner = lambda w: square(x @ w)
        return square(jax.grad(inner)(w))  # a penalty on the gradient

    rows = co.per_example_grad(value_and_grad)(w, x)
    one = lambda w, x: jax.grad(value_and_grad)(w, x[None])
    assert_close(co.materialize(rows), jax.vmap(one, (None, 0))(w, x), 5e-6)


def test_small_products_are_not_kept_factored():
    rows = co.per_example_grad(lambda w, x: square(x @ w))(
        jnp.ones((2, 2)), jnp.ones((3, 2))
    )
    assert not co.is_outer_product(rows)
