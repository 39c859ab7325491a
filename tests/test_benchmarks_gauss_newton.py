"""The benchmark of second order in the span, at tiny sizes."""

import jax
import pytest

from benchmarks import _harness, gauss_newton


@pytest.fixture(autouse=True)
def _as_users_do():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.slow
def test_smoke_run_of_gauss_newton_compares_equals(tmp_path):
    gauss_newton.main(["--smoke", "--out", str(tmp_path)])
    rows = _harness.read("gauss_newton", tmp_path)
    assert len(rows) == len(gauss_newton.SMOKE_SIZES) * (1 + len(gauss_newton.STEPS))
    # a solution of 8 equations in float32, whose condition is at most 1e4
    assert all(row["apart"] < 1e-3 for row in rows)
    text = (tmp_path / "gauss_newton.md").read_text(encoding="utf-8")
    assert "| B = 4 | B = 8 |" in text
