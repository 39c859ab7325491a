import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from consensus_optax._rules import order_statistics as statistics


@pytest.mark.parametrize("count", range(1, 11))
def test_the_network_sorts_all_zeros_and_ones_and_so_everything(count):
    for numbers in itertools.product((0, 1), repeat=count):
        line = list(numbers)
        for i, j in statistics.comparators(count):
            line[i], line[j] = min(line[i], line[j]), max(line[i], line[j])
        assert line == sorted(numbers)


def test_the_network_is_as_small_as_batchers():
    sizes = [len(statistics.comparators(n)) for n in (2, 4, 8, 16, 32, 64)]
    assert sizes == [1, 5, 19, 63, 191, 543]


def numbers(count, width=7):
    random = np.random.default_rng(count)
    wide = random.normal(size=(count, width)) * 10.0 ** random.uniform(-30, 30)
    wide[count // 2] = -0.0
    wide[0, 0] = 3e38
    return wide.astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, 9, 64, 65, 130])
@pytest.mark.parametrize("all_there", [True, False])
@pytest.mark.parametrize("way", ["default", "tpu"])
def test_ranks_among_the_present_rows(count, all_there, way, monkeypatch):
    choose = lambda **ways: ways[way]()
    monkeypatch.setattr(statistics.lax, "platform_dependent", choose)
    rows = numbers(count)
    present = np.ones(count, bool)
    if not all_there:
        present[1::3] = False
    ranks = lambda n: (0, (n - 1) // 2, n - 1)
    compiled = jax.jit(lambda x, y: statistics.order_statistics(x, y, ranks))
    got = compiled(jnp.asarray(rows), jnp.asarray(present))
    ascending = np.sort(rows[present], 0)
    wanted = [ascending[rank] for rank in ranks(present.sum())]
    np.testing.assert_array_equal(np.stack(got), np.stack(wanted))


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("way", ["default", "tpu"])
def test_ranks_if_all_rows_are_alike(condition, way, monkeypatch):
    choose = lambda **ways: ways[way]()
    monkeypatch.setattr(statistics.lax, "platform_dependent", choose)
    rows, all_but = jnp.asarray(numbers(9)), jnp.ones(9, bool).at[3].set(condition)
    (got,) = statistics.if_all(all_but, rows, [4], lambda: [rows[0]])
    np.testing.assert_array_equal(got, np.sort(rows, 0)[4] if condition else rows[0])


def test_a_tpu_sorts():
    ranks = lambda n: (n // 2,)
    find = jax.jit(lambda x, y: statistics.order_statistics(x, y, ranks))
    traced = find.trace(jnp.ones((9, 4)), jnp.ones(9, bool))
    for platform in ("cpu", "cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.sort" in text) is (platform == "tpu")
        assert ("stablehlo.while" in text) is (platform != "tpu")


def test_weight_at_or_below():
    rows = jnp.array([[4.0, -1.0], [-2.0, 0.0], [1.0, -3.0]])
    weights = jnp.array([1.0, 2.0, 0.5])
    reached = statistics.smallest_reaching(rows, weights, [0.5, 2.0, 2.25, 3.5])
    wanted = [[-2, -3], [-2, 0], [1, 0], [4, 0]]
    np.testing.assert_array_equal(np.stack(reached), wanted)


def test_float64_keeps_all_its_bits():
    with jax.enable_x64(True):
        rows = jnp.array([[1.0], [1.0 + 2**-50], [-1e300]])
        (found,) = statistics.smallest_reaching(rows, jnp.ones(3), [3.0])
        assert found[0] == 1.0 + 2**-50


@pytest.mark.parametrize("count", [1, 6, 131])
@pytest.mark.parametrize("way", ["cpu", "default"])
def test_sums_over_rows(count, way, monkeypatch):
    choose = lambda **ways: ways[way]()
    monkeypatch.setattr(statistics.lax, "platform_dependent", choose)
    rows = numbers(count) % 7
    got = statistics.total(lambda i, row: (row, row * row), jnp.asarray(rows))
    np.testing.assert_allclose(got[0], rows.sum(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got[1], (rows * rows).sum(0), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [lambda: co.trimmed_mean(1), co.median], ids=["trimmed", "median"]
)
def test_without_jit_it_is_the_same(make):
    """Ranks by bits, which an absent row asks for."""
    rule, params = make(), jnp.zeros(3)
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(7, 3)), jnp.float32)
    weights = jnp.array([0.0, 1, 1, 2, 1, 1, 1])
    given = rows, rule.init(params), params
    wanted = jax.jit(rule.update)(*given, weights=weights)[0]
    with jax.disable_jit():
        found = rule.update(*given, weights=weights)[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
