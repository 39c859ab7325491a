"""How many passes decide: three on a TPU where the model took one, else the highest."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import consensus_optax as co
from consensus_optax._rows import gramians, verbs
from tests._bounds import unit

pytestmark = pytest.mark.slow

ROWS, M, N = 6, 12, 9


def leaf_of(terms, precision=None, looked_up=False, noise=1.0):
    """Rows around a common one, at ``noise`` times its size."""
    random = np.random.default_rng(terms)
    draw = lambda *shape: random.normal(size=shape)
    near = lambda size: draw(1, terms, size) + noise * draw(ROWS, terms, size)
    left = random.integers(0, M, (ROWS, terms)) if looked_up else near(M)
    kind = jnp.int32 if looked_up else jnp.float32
    left, right = jnp.asarray(left, kind), jnp.asarray(near(N), jnp.float32)
    return co.OuterProduct(left, right, (M, N), precision=precision)


READS = {
    "norms": lambda leaf: verbs.squared_norms(leaf, jnp.float32),
    "Gramian": lambda leaf: verbs.gramian(leaf, jnp.float32),
}


def precisions(read, leaf, platform):
    """Of all products of a program lowered for a platform that may not be there."""
    traced = jax.jit(READS[read]).trace(leaf)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    return set(re.findall(r"precision = \[(\w+), \w+\]", text)) - {"DEFAULT"}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("terms", [2, 40], ids=["by factors", "multiplied out"])
def test_three_passes_on_a_tpu_alone(read, platform, terms):
    got = precisions(read, leaf_of(terms), platform)
    no_matrix_product = read == "norms" and terms == 40  # of each row with itself
    three = platform == "tpu" and not no_matrix_product
    assert got == {"HIGH" if three else "HIGHEST"}


@pytest.mark.parametrize(
    "leaf",
    [
        leaf_of(1),
        leaf_of(2, lax.Precision.HIGHEST),
        leaf_of(2, (lax.Precision.HIGHEST, lax.Precision.HIGHEST)),
        leaf_of(2, looked_up=True),
    ],
    ids=["two vectors", "highest", "highest of both", "look-up"],
)
@pytest.mark.parametrize("read", READS)
def test_as_exact_as_the_rows_are(read, leaf):
    assert precisions(read, leaf, "tpu") == {"HIGHEST"}


@pytest.fixture
def _three_passes(monkeypatch):
    """What a TPU does, on this machine: numbers as two halves, the least left out."""

    def halves(x):
        high = x.astype(jnp.bfloat16).astype(x.dtype)
        return high, (x - high).astype(jnp.bfloat16).astype(x.dtype)

    def product(x, multiply, *operands):
        (a, b), (c, d) = map(halves, operands)
        exact = lambda *both: multiply(*both, precision=lax.Precision.HIGHEST)
        return exact(a, d) + exact(b, c) + exact(a, c)

    monkeypatch.setattr(gramians, "_decided", product)


# A number as two halves of 8 bits is off by 2^-17 and what is left out by 2^-16, of the
# sum of magnitudes; products of products of factors have it twice.
PASSES = 4 * unit(jnp.bfloat16) ** 2


@pytest.mark.usefixtures("_three_passes")
@pytest.mark.parametrize("noise", [1.0, 1e-3])
@pytest.mark.parametrize("terms", [2, 40], ids=["by factors", "multiplied out"])
def test_three_passes_are_off_by_so_much(terms, noise):
    leaf = leaf_of(terms, noise=noise)
    got = np.asarray(verbs.gramian(leaf, jnp.float32), np.float64)
    left, right = (np.asarray(x, np.float64) for x in (leaf.left, leaf.right))
    rows = np.einsum("btm,btn->bmn", left, right).reshape(ROWS, -1)
    sizes = np.einsum("btm,btn->bmn", abs(left), abs(right)).reshape(ROWS, -1)
    assert (abs(got - rows @ rows.T) <= 2 * PASSES * (sizes @ sizes.T)).all()
    assert abs(got - rows @ rows.T).max() > 8 * unit() * (rows @ rows.T).max()


def updated(reducer, leaf):
    params = jnp.zeros((M, N))
    return np.asarray(reducer.update(leaf, reducer.init(params), params)[0])


NEAR = {
    "krum": lambda: co.krum(1),
    "geometric_median": co.geometric_median,
    "minimum_diameter": lambda: co.minimum_diameter(1),
    "mgda": co.mgda,
}


@pytest.mark.usefixtures("_three_passes")
@pytest.mark.parametrize("name", NEAR)
@pytest.mark.parametrize("noise", [1e-2, 1e-4])
@pytest.mark.parametrize("terms", [2, 40], ids=["by factors", "multiplied out"])
def test_nearly_equal_rows_are_told_apart(name, noise, terms, monkeypatch):
    """Rows whose distances are less than what the products are off by."""
    leaf = leaf_of(terms, noise=noise)
    three = updated(NEAR[name](), leaf)
    monkeypatch.undo()
    rows = np.asarray(leaf.materialize())
    spread = np.sqrt(((rows - rows.mean(0)) ** 2).sum((1, 2)).max())
    off = np.linalg.norm(three - updated(NEAR[name](), leaf)) / spread
    assert off < 1e-2, f"{off:.2g} of the rows' spread"


@pytest.mark.usefixtures("_three_passes")
@pytest.mark.parametrize("margin", [2.0**-12, -(2.0**-12)])
def test_a_cosine_close_to_the_threshold(margin):
    """Decided alike down to a few times 2^-16."""
    leaf = leaf_of(40)
    two = leaf[:2]
    x, y = np.asarray(two.materialize(), np.float64).reshape(2, -1)
    cosine = x @ y / np.sqrt((x @ x) * (y @ y))
    rule, params = co.cosine_filter(float(1 - cosine + margin)), jnp.zeros((M, N))
    _, state = rule.update(two, rule.init(params), params)
    assert bool(state.rule_state.accepted) == (margin > 0)
