"""Rows travel in the way that sends least: all ways counted, entry by entry."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from consensus_optax._rows.verbs import Mixed
from consensus_optax.engines.mesh.factors import (
    Factors,
    as_travelling,
    bytes_each,
    stays_for_less,
)
from consensus_optax.engines.mesh.layout import Stay

ROWS, BF16 = 3, np.dtype(jnp.bfloat16)


def product(left, right, row_shape, dtype=np.dtype("float32"), **options):
    """Factors of these shapes, each row a matrix or some layers of them."""
    factors = (jnp.ones((ROWS, *shape), dtype) for shape in (left, right))
    return co.OuterProduct(*factors, row_shape, dtype=dtype, **options)


def look_up(num_terms, width, num_lines):
    places = jnp.zeros((ROWS, num_terms), jnp.int32)
    found = jnp.ones((ROWS, num_terms, width))
    return co.OuterProduct(places, found, (num_lines, width))


LEAVES = {
    "an array": jnp.ones((ROWS, 5, 7)),
    "half an array": jnp.ones((ROWS, 5, 7), BF16),
    "vectors": product((1, 8), (1, 21), (8, 21)),
    "long vectors": product((1, 41), (1, 6), (41, 6)),
    "a row": product((1, 1), (1, 30), (1, 30)),
    "small": product((1, 2), (1, 2), (2, 2)),
    "two terms": product((2, 8), (2, 24), (8, 24)),
    "many terms": product((9, 8), (9, 8), (8, 8)),
    "half precision": product((2, 16), (2, 40), (16, 40), BF16),
    "layers": product((2, 1, 8), (2, 1, 21), (2, 8, 21)),
    "long layers": product((3, 2, 33), (3, 2, 8), (3, 33, 8)),
    "words": look_up(3, 16, 40),
    "few columns": look_up(20, 9, 100),
    "many words": look_up(30, 16, 40),
}
part = lambda size, count: -(-size // count)


def sent(leaf, dealt, count, signs):
    """Bytes to each other device: of its rows, and what the update is longer."""
    size = int(np.prod(leaf.shape[1:]))
    if not dealt:
        return ROWS * part(size, count) * (1 if signs else leaf.dtype.itemsize)
    travelling = Factors(leaf, dealt)
    there = [jax.eval_shape(lambda: travelling.parts(count)[:, 0])]
    there.append(jax.eval_shape(lambda: travelling.whole))
    vectors = signs and not leaf.is_look_up and leaf.left.shape[-2] == 1
    itemsize = lambda x: 1 if vectors else x.dtype.itemsize
    update = jnp.zeros(leaf.shape[1:])
    back = jax.eval_shape(lambda: travelling.layout.parts(update, count)[0])
    longer = (back.size - part(size, count)) * leaf.dtype.itemsize
    return sum(x.size * itemsize(x) for x in there) + longer


def ways(leaf):
    """Ways in which a leaf can travel."""
    if not co.is_outer_product(leaf):
        return ("",)
    return ("", "right") if leaf.is_look_up else ("", "right", "left")


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("name", LEAVES)
def test_the_least_of_all_ways(name, signs):
    leaf = LEAVES[name]
    for count in (1, 2, 3, 4, 8):
        bytes_of = {way: sent(leaf, way, count, signs) for way in ways(leaf)}
        assert bytes_each(leaf, count, signs) == min(bytes_of.values())
        found = as_travelling(leaf, count, signs, jnp.float32)
        way = found.dealt if isinstance(found, Factors) else ""
        assert bytes_of[way] == min(bytes_of.values())
        if signs and not way:
            assert found.dtype == jnp.int8


def test_every_way_is_taken_by_some():
    taken = {}
    for leaf in LEAVES.values():
        found = as_travelling(leaf, 4, False, jnp.float32)
        taken[found.dealt if isinstance(found, Factors) else ""] = True
    assert taken.keys() == {"", "right", "left"}


def test_what_cannot_travel_as_factors_does_not():
    """Mixed rows, and parameters that are cut along an axis of their own."""
    leaf = LEAVES["vectors"]
    whole = ROWS * part(8 * 21, 4) * 4
    cut = dataclasses.replace(leaf, spec=(None, "model"))
    order = jnp.arange(ROWS, dtype=jnp.int32)
    for other in (cut, Mixed(jnp.eye(ROWS), leaf, order)):
        assert bytes_each(other, 4, False) == whole > bytes_each(leaf, 4, False)
        assert isinstance(as_travelling(other, 4, False, jnp.float32), jax.Array)


def test_a_table_of_which_few_lines_are_looked_up_stays_cut_along_them():
    """Every device gets all terms, with indices as those of its own lines."""
    count, terms, width, lines = 3, 3, 16, 3999
    places = jnp.array([[0, 1332, 1333], [3998, 5, 5], [-1, lines, 2000]], jnp.int32)
    found = jnp.arange(ROWS * terms * width, dtype=jnp.float32)
    leaf = co.OuterProduct(places, found.reshape(ROWS, terms, width), (lines, width))
    stay = Stay(0, ("data",), ("data",), ("data",))
    assert bytes_each(leaf, count, False, stay) == ROWS * terms * (1 + width) * 4
    assert stays_for_less(leaf, count, False, stay)
    sent = as_travelling(leaf, count, False, jnp.float32, stay)
    parts = sent.parts(count)  # (ROWS, count, terms)
    rows = leaf.materialize().reshape(ROWS, count, -1)
    for device in range(count):
        block = sent.block(parts[:, device], sent.whole)
        np.testing.assert_array_equal(block.materialize(), rows[:, device])
    # more terms than lines would be more than lines
    many = look_up(3000, width, lines)
    assert isinstance(as_travelling(many, count, False, jnp.float32, stay), jax.Array)
