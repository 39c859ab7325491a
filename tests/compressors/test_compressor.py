"""What every compressor promises: mean, error, bytes, dtypes, shapes, draws.

Draws lie in intervals of known width, so Hoeffding's inequality bounds what a mean of n
of them is off by, whatever their distribution: a test errs once in 1e9 seeds.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from consensus_optax import compressors
from tests._selected import cases, in_ci

KEY = jax.random.key(20261126)
SHAPE = (6, 8)
SIZE = math.prod(SHAPE)
CODES = {
    "top_k": compressors.top_k(0.1),
    "random_k": compressors.random_k(0.1, KEY),
    "random_k, biased": compressors.random_k(0.1, KEY, rescale=False),
    "sign": compressors.scaled_sign(),
    "int8": compressors.stochastic_quantization(8, KEY),
    "int4": compressors.stochastic_quantization(4, KEY),
    "int2": compressors.stochastic_quantization(2, KEY),
    "int8, norm": compressors.stochastic_quantization(8, KEY, scale="norm"),
    "int4, range": compressors.stochastic_quantization(4, KEY, scale="range"),
    "natural": compressors.natural(KEY),
    "low_rank": compressors.low_rank(2, KEY),
    "int4 in pieces": compressors.bucketed(
        compressors.stochastic_quantization(4, KEY), size=10
    ),
}
BYTES = {  # of 48 float32
    "top_k": 5 * 4 + 5,
    "random_k": 5 * 4,
    "random_k, biased": 5 * 4,
    "sign": 6 + 4,
    "int8": 48 + 4,
    "int4": 24 + 4,
    "int2": 12 + 4,
    "int8, norm": 48 + 4,
    "int4, range": 24 + 8,
    "natural": 48 + 6,
    "low_rank": 4 * 2 * (6 + 8),
    "int4 in pieces": 5 * (5 + 4),
}
DRAWS = 2048
FAILURES = 1e-9
every_code = pytest.mark.parametrize("name", cases(CODES, "int4"))


def hoeffding(width, tests):
    """What the mean of so many draws in an interval is off by, but once in 1e9."""
    return width * np.sqrt(np.log(2 * tests / FAILURES) / (2 * DRAWS))


def arrays():
    """Random ones, and what is worst for one compressor or another."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=SHAPE)
    named = {
        "normal": normal,
        "equal": np.ones(SHAPE),
        "one entry": np.eye(SIZE)[7].reshape(SHAPE),
        "decaying": (2.0 ** -np.arange(SIZE)).reshape(SHAPE),
        "identity": np.eye(*SHAPE),
        "rank one": np.outer(rng.normal(size=6), rng.normal(size=8)),
        "heavy": normal**5,
        "positive": 3 + normal**2,
        "just above a level": np.where(np.arange(SIZE) == 0, 1, 1e-3).reshape(SHAPE),
        "zero": np.zeros(SHAPE),
        "tiny": 1e-20 * normal,
        "huge": 1e30 * normal,
    }
    return {name: np.asarray(x, np.float32) for name, x in named.items()}


@functools.cache
def drawn(name):
    """Every array as it arrives, with many keys: (arrays, DRAWS or 1, *SHAPE)."""
    code = CODES[name]
    given = jnp.stack(list(arrays().values()))
    keys = None if code.key is None else jax.random.split(KEY, DRAWS)

    def once(array, key):
        return code.decompress(code.compress(array, key), SHAPE, key)

    if keys is None:
        found = jax.jit(jax.vmap(lambda x: once(x, None)))(given)[:, None]
    else:
        found = jax.jit(jax.vmap(jax.vmap(once, (None, 0)), (0, None)))(given, keys)
    return np.asarray(given, np.float64), np.asarray(found, np.float64)


def widths(name, given):
    """How far apart what is drawn for an entry can be."""
    largest = np.abs(given).max((1, 2), keepdims=True)
    if name == "random_k":
        return np.abs(given) * SIZE / 5
    if name == "natural":
        exact = np.where(given == 0, 1, np.abs(given))
        return np.where(given == 0, 0, 2.0 ** np.floor(np.log2(exact)))
    if name == "int8, norm":
        return np.sqrt((given**2).sum((1, 2), keepdims=True)) / 127 + 0 * given
    if name == "int4, range":
        high, low = (f(given, (1, 2), keepdims=True) for f in (np.max, np.min))
        return (high - low) / 15 + 0 * given
    top = {"int8": 127, "int4": 7, "int4 in pieces": 7, "int2": 1}[name]
    return largest / top + 0 * given  # of pieces less


@pytest.mark.parametrize("name", cases([x for x in CODES if CODES[x].variance], "int4"))
def test_unbiased(name):
    given, found = drawn(name)
    off = np.abs(found.mean(1) - given)
    width = widths(name, given)
    # rounding of what is sent and made again, and draws that are multiples of 2^-23
    rounding = 2.0**-22 * (width + np.abs(given).max((1, 2), keepdims=True))
    assert np.all(off <= hoeffding(width, off.size) + rounding)
    # the test sees what it looks for: half of a level more is found
    some = width > 0
    assert np.any(off[some] + width[some] / 2 > hoeffding(width, off.size)[some])


@every_code
def test_error_is_within_contraction_and_variance(name):
    given, found = drawn(name)
    code = CODES[name]
    # in units of the largest entry: squares of small numbers are none
    unit = np.abs(given).max((1, 2))
    unit = np.where(unit > 0, unit, 1)[:, None, None, None]
    x = given[:, None] / unit
    errors = ((found / unit - x) ** 2).sum((2, 3))  # (arrays, draws)
    squares = (x**2).sum((2, 3))[:, 0]
    for bound, factor in (
        (code.contraction, lambda delta: 1 - delta),
        (code.variance, lambda omega: omega),
    ):
        if bound is None or (bound is code.contraction and not bound(SHAPE)):
            continue
        share = factor(bound(SHAPE))
        most = errors.max(1)  # an interval that all are in
        room = hoeffding(most, len(most)) if code.key is not None else 0
        # float32 in 48 terms; rounding of subnormal entries is beyond the bound
        assert np.all(errors.mean(1) <= share * squares + room + 1e-5 * squares + 1e-30)
    assert np.all(errors[list(arrays()).index("zero")] == 0)
    if code.largest is not None:  # of every draw; float32, and numbers below its least
        off = np.abs(found / unit - x).max((1, 2, 3))
        assert np.all(off <= code.largest + 1e-6)


@in_ci
def test_bounds_are_reached():
    """Where the bound of a contraction is all there is, an array that attains it."""
    names = list(arrays())
    for name, worst, share in (
        ("top_k", "equal", 1 - 5 / SIZE),
        ("random_k, biased", "equal", 1 - 5 / SIZE),
        ("sign", "one entry", 1 - 1 / SIZE),
        ("low_rank", "identity", 1 - 2 / 6),
    ):
        given, found = drawn(name)
        index = names.index(worst)
        error = ((found[index] - given[index]) ** 2).sum((1, 2)).mean()
        assert abs(error / (given[index] ** 2).sum() - share) < 0.05


@every_code
def test_bytes_are_those_of_the_message(name):
    code = CODES[name]
    params = {"w": jnp.zeros(SHAPE), "count": jnp.zeros(3, jnp.int32)}
    assert code.num_bytes(params) == BYTES[name]
    message = code.compress(jnp.ones(SHAPE), KEY)
    assert sum(x.nbytes for x in jax.tree.leaves(message)) == BYTES[name]


@every_code
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (17,), (2, 3, 4)])
def test_shapes_and_bfloat16(name, shape):
    code = CODES[name]
    array = jnp.arange(math.prod(shape), dtype=jnp.bfloat16).reshape(shape) - 1
    message = jax.eval_shape(code.compress, array, KEY)
    found = jax.eval_shape(lambda x: code.decompress(x, shape, KEY), message)
    assert found.shape == shape
    assert found.dtype == jnp.float32


@pytest.mark.parametrize("name", cases(["int8", "int4", "natural", "sign"], "sign"))
def test_the_largest_numbers_stay_finite(name):
    code, most = CODES[name], float(np.finfo(np.float32).max)
    array = jnp.array([most, -most, 1.0, 0.0])
    message = code.compress(array, KEY)
    assert np.isfinite(code.decompress(message, (4,), KEY)).all()


@in_ci
@pytest.mark.parametrize(
    "name", ["top_k", "sign", "natural", "int8", "random_k, biased"]
)
def test_what_has_been_compressed_is_compressed_without_loss(name):
    """To rounding: what error feedback ahead of a wire of the same code relies on."""
    code = CODES[name]
    once = code.decompress(code.compress(arrays()["normal"], KEY), SHAPE, KEY)
    twice = code.decompress(code.compress(once, KEY), SHAPE, KEY)
    # a draw whose number lies between a level and what rounding makes of it would err
    np.testing.assert_allclose(twice, once, rtol=1e-5)


def test_prints_as_its_call():
    assert repr(CODES["top_k"]) == "top_k(0.1)"
    assert repr(CODES["random_k, biased"]) == "random_k(0.1, ..., rescale=False)"
    inner = "stochastic_quantization(4, ..., scale='max')"
    assert repr(CODES["int4 in pieces"]) == f"bucketed({inner}, size=10)"


def test_bad_arguments():
    bad = pytest.raises
    with bad(ValueError, match=r"`fraction` must be in \(0, 1\]; got 0"):
        compressors.top_k(0.0)
    with bad(ValueError, match=r"`fraction` must be in \(0, 1\]; got 1.5"):
        compressors.random_k(1.5, KEY)
    with bad(ValueError, match="`rescale` must be True or False"):
        compressors.random_k(0.5, KEY, rescale=1)
    with bad(ValueError, match="`bits` must be 8 or 4 or 2; got 3"):
        compressors.stochastic_quantization(3, KEY)
    with bad(ValueError, match="`scale` must be one of .*; got 'maximum'"):
        compressors.stochastic_quantization(8, KEY, scale="maximum")
    with bad(ValueError, match="`rank` must be at least 1; got 0"):
        compressors.low_rank(0, KEY)
    with bad(ValueError, match="`size` must be given, or else `count`, not both"):
        compressors.bucketed(compressors.scaled_sign())
    with bad(ValueError, match="`compressor` must be one of entries, not of matrices"):
        compressors.bucketed(compressors.low_rank(1, KEY), size=3)
    with bad(ValueError, match=r"`compressor` must be a compressor, such as"):
        co.compressed("top_k")
