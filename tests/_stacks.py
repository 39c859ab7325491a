"""Stacks of rows that every reducer is tried on: all of one shape, so one compilation.

A stack is a matrix J, (B, P), with weights (B,); `tree` cuts it into the leaves of
PARAMS: a square kernel, a list, a scalar, a leaf without entries.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from consensus_optax import OuterProduct

B = 6
SHAPES = {
    "block": {"kernel": (4, 4)},
    "empty": (0, 3),
    "layers": [(3, 2)],
    "scale": (),
}
SIZES = [
    int(np.prod(shape))
    for shape in jax.tree.leaves(SHAPES, is_leaf=lambda x: isinstance(x, tuple))
]
P = sum(SIZES)


class Stack(NamedTuple):
    """Rows (..., B, P) and their weights (..., B), in NumPy and float64."""

    rows: np.ndarray
    weights: np.ndarray

    @property
    def present(self):
        """Which rows must count."""
        return (self.weights > 0) & np.isfinite(self.rows).all(-1)


def tree(matrix, dtype=jnp.float32):
    """Cuts (..., P) into leaves (..., *shape)."""
    shapes, treedef = jax.tree.flatten(SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    cuts = np.split(np.asarray(matrix), np.cumsum(SIZES)[:-1], axis=-1)
    leaves = [
        jnp.asarray(cut.reshape(cut.shape[:-1] + shape), dtype)
        for cut, shape in zip(cuts, shapes, strict=True)
    ]
    return jax.tree.unflatten(treedef, leaves)


def matrix(leaves, batch_ndim=0):
    """The inverse of `tree`, in float64."""
    flat = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(leaves)]
    return np.concatenate([x.reshape(*x.shape[:batch_ndim], -1) for x in flat], axis=-1)


def one_by_one(function):
    """Of arguments with an axis of stacks: one program, one stack after another.

    To trace a function for all of them at once (`jax.vmap`) takes longer than to run it
    for each, and conditions become choices, which they are not where rules are used.
    """
    return lambda *stacks: jax.lax.map(lambda stack: function(*stack), stacks)


def params(dtype=jnp.float32):
    """Parameters of these shapes."""
    return tree(np.linspace(-1, 1, P), dtype)


def stacks():
    """Name to Stack: ranks, scales, special rows, rows that are not there."""
    random = np.random.default_rng(20240622)
    ones = np.ones(B)
    # Entries are float32 numbers, so that the float64 references read the same rows.
    single = lambda x: np.asarray(x, np.float32).astype(np.float64)
    normal = lambda *shape: single(random.standard_normal(shape))
    base = normal(P)
    base[-1] = 2  # the scalar leaf: rows that hardly agree are ill-conditioned there
    noisy = single(base + 0.6 * normal(B, P))  # rows that agree on many signs
    agreeing = single(np.sign(base) * random.uniform(0.5, 1.5, (B, P)))

    def bad(*entries):
        rows = noisy.copy()
        for row, column, value in entries:
            rows[row, column] = value
        return rows

    zero_row = noisy.copy()
    zero_row[2] = 0
    outlier = noisy.copy()
    outlier[3] = single(-1e3 * noisy[3])
    zeros_among = np.where(random.uniform(size=(B, P)) < 0.2, 0, agreeing)
    absent, four = np.array([1, 0, 1, 1, 0, 1.0]), np.array([1, 1, 1, 1, 0, 0.0])
    named = {
        "full rank": normal(B, P),
        "noisy": noisy,
        "agreeing": agreeing,
        "zeros among": zeros_among,
        "rank one": single(np.outer(single(random.uniform(0.5, 2, B)), base)),
        "rank two": single(normal(B, 2) @ normal(2, P)),
        "tiny": single(1e-10 * noisy),
        "huge": single(1e10 * noisy),
        "zero": np.zeros((B, P)),
        "zero row": zero_row,
        "equal": np.tile(base, (B, 1)),
        "outlier": outlier,
        "outlier first": outlier[[3, 0, 1, 2, 4, 5]],
        "nan": bad((1, P - 1, np.nan)),  # in the scalar leaf alone
        "inf": bad((4, 0, np.inf), (4, 1, -np.inf)),
        "nan and inf": bad((0, 3, np.nan), (0, 5, np.inf), (5, 17, -np.inf)),
        "all nan": noisy + np.nan,
    }
    every = {name: Stack(rows, ones) for name, rows in named.items()}
    return every | {
        # Powers of 2: whatever one weight is, its products cancel without rounding.
        "opposite": Stack(np.outer([1, -1, 1, -1, 9, 9], np.sign(base) / 2), four),
        "tie": Stack(np.outer([1, 1, -1, -1, 9, 9], np.sign(base)), four),
        "padded": Stack(np.where(absent[:, None] > 0, noisy, np.nan), absent),
        "padded and nan": Stack(bad((0, 9, np.nan), (1, 2, np.inf)), absent),
        "one row": Stack(noisy, np.array([0, 0, 0, 1.0, 0, 0])),
        "nobody": Stack(noisy, np.zeros(B)),
        "weighted": Stack(noisy, np.array([2, 1, 3, 0, 0, 0.0])),
        "repeated": Stack(noisy[[0, 0, 1, 2, 2, 2]], ones),
        "unequal": Stack(agreeing, np.array([0.5, 4, 1, 2, 0.25, 1])),
    }


STACKS = stacks()
NAMES = list(STACKS)
ALL = Stack(
    np.stack([stack.rows for stack in STACKS.values()]),
    np.stack([stack.weights for stack in STACKS.values()]),
)


def factored():
    """Rows that are no float32 arrays, their parameters, and what they stand for.

    Outer products of one term (transposed), of three (bfloat16, reshaped) and of two
    layers with two terms each (their axis last), rows of a table that was looked up,
    and a bfloat16 array; the last result is (B, size) each.
    """
    random = np.random.default_rng(7)
    normal = lambda dtype, *shape: jnp.asarray(random.normal(1, 1, shape), dtype)
    one, other = normal(jnp.float32, B, 1, 4), normal(jnp.float32, B, 1, 3)
    past, ahead = normal(jnp.bfloat16, B, 3, 3), normal(jnp.bfloat16, B, 3, 5)
    places, found = jnp.asarray(random.integers(0, 5, (B, 4))), normal(float, B, 4, 2)
    inputs, outputs = normal(float, B, 2, 2, 3), normal(float, B, 2, 2, 2)
    rows = {
        "array": normal(jnp.bfloat16, B, 5),
        "dense": OuterProduct(one, other, (4, 3), (("transpose", (1, 0)),)),
        "layers": OuterProduct(
            *(inputs, outputs, (2, 3, 2)), (("transpose", (1, 2, 0)),)
        ),
        "sequence": OuterProduct(past, ahead, (3, 5), (("reshape", (5, 3)),)),
        "table": OuterProduct(places, found, (5, 2)),
    }
    stood_for = [
        np.zeros((B, 5)),
        np.zeros((B, 12)),
        np.zeros((B, 12)),
        np.zeros((B, 15)),
        np.zeros((B, 10)),
    ]
    for i in range(B):
        stood_for[0][i] = np.asarray(rows["array"][i], float)
        stood_for[1][i] = np.outer(other[i, 0], np.asarray(one[i, 0], float)).ravel()
        for layer, t in np.ndindex(2, 2):
            pair = np.asarray(inputs[i, layer, t]), np.asarray(outputs[i, layer, t])
            stood_for[2][i, layer::2] += np.outer(*pair).astype(float).ravel()
        for t in range(3):
            pair = np.asarray(past[i, t], float), np.asarray(ahead[i, t], float)
            stood_for[3][i] += np.outer(*pair).ravel()
        for t in range(4):
            at = 2 * int(places[i, t])
            stood_for[4][i, at : at + 2] += np.asarray(found[i, t], float)
    parameters = {name: jnp.ones(leaf.shape[1:]) for name, leaf in rows.items()}
    return rows, parameters, stood_for


def first_update(reducer, rows, **extra):
    """Update and state of the first step, compiled, with parameters of zeros."""
    rows = jax.tree.map(jnp.asarray, rows)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), rows)
    update = lambda rows, extra: reducer.update(
        rows, reducer.init(params), params, **extra
    )
    return jax.jit(update)(rows, extra)
