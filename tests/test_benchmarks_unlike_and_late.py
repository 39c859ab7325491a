"""The benchmark of unlike and late clients at tiny sizes."""

import jax
import numpy as np
import pytest

from benchmarks import _harness, unlike_and_late
from benchmarks.unlike_and_late import SMOKE


@pytest.fixture(autouse=True)
def _ordinary_losses():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.slow
def test_a_run_writes_rows_a_table_and_a_plot(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason='needs pip install "consensus_optax[demo]"')
    few = {"mean": unlike_and_late.late_rules()["mean of rows / sqrt(1 + age)"]}
    monkeypatch.setattr(unlike_and_late, "late_rules", lambda: few)
    ways = unlike_and_late.ways(SMOKE.num_sampled)
    monkeypatch.setattr(
        unlike_and_late, "ways", lambda _: {"SCAFFOLD": ways["SCAFFOLD"]}
    )
    unlike_and_late.main(["--smoke", "--tasks", "digits", "--out", str(tmp_path)])
    rows = _harness.read("unlike_and_late", tmp_path)
    assert [row["contestant"] for row in rows] == ["SCAFFOLD"] * 2 + ["mean"] * 2
    assert all(np.shape(row["accuracy"]) == (SMOKE.seeds,) for row in rows)
    ages = [row["x"] for row in rows if row["question"] == "staleness"]
    assert 0 < ages[0] < ages[1]  # more clients at a time are later
    text = (tmp_path / "unlike_and_late.md").read_text(encoding="utf-8")
    assert f"{100 * np.mean(rows[0]['accuracy']):.1f} ± " in text
    assert 0 < (tmp_path / "unlike_and_late.png").stat().st_size < 100_000


def test_a_table_of_each_question():
    row = {"question": "heterogeneity", "task": "digits", "x": 0.1}
    rows = [
        {**row, "contestant": "a", "accuracy": [0.2, 0.4]},
        {**row, "contestant": "a", "x": 1.0, "accuracy": [0.5, 0.5]},
        {**row, "question": "staleness", "contestant": "b", "accuracy": [0.1, 0.1]},
    ]
    first, second = unlike_and_late.table(rows).split("\n\ndigits")
    assert "| a | 30.0 ± 10.0 | 50.0 ± 0.0 |" in first
    assert "| b | 10.0 ± 0.0 |" in second
