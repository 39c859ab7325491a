"""Small leaves become one array, large ones and products stay what they are."""

import jax.numpy as jnp
import numpy as np

import consensus_optax as co
from consensus_optax._rows.verbs import Mixed
from consensus_optax._running.packing import pack

ROWS = 2


def rows_of(*shape):
    size = ROWS * int(np.prod(shape))
    return jnp.arange(float(size), dtype=jnp.bfloat16).reshape(ROWS, *shape)


LARGE = {
    "vector": rows_of(1 << 15),
    "matrix": rows_of(2, 1 << 14),
    "product": co.OuterProduct(jnp.ones((ROWS, 1, 2)), jnp.ones((ROWS, 1, 3)), (2, 3)),
    "mixed": Mixed(jnp.eye(ROWS), rows_of(3), jnp.arange(ROWS, dtype=jnp.int32)),
}


def test_two_small_leaves_are_one_array_and_come_back_in_their_places():
    small = [rows_of(4), rows_of(2, 3)]
    leaves = [LARGE["vector"], small[0], *list(LARGE.values())[1:], small[1]]
    packed = pack(leaves, jnp.float32)
    *others, strung = packed.leaves
    assert list(map(id, others)) == list(map(id, LARGE.values()))
    assert (strung.shape, strung.dtype) == ((ROWS, 10), jnp.float32)
    results = packed.unpack([*LARGE, strung[1]])
    assert [results[0], *results[2:5]] == list(LARGE)
    for result, leaf in zip((results[1], results[5]), small, strict=True):
        np.testing.assert_array_equal(result, leaf[1].astype(jnp.float32))


def test_one_small_leaf_is_not_copied():
    leaves = [LARGE["matrix"], rows_of(4)]
    packed = pack(leaves, jnp.float32)
    assert list(map(id, packed.leaves)) == list(map(id, leaves))
    assert packed.unpack(["matrix", "small"]) == ["matrix", "small"]
