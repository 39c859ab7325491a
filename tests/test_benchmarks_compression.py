"""The benchmark of compressed messages at tiny sizes: bytes, curves, the table."""

import jax
import numpy as np
import pytest

from benchmarks import _harness, compression
from benchmarks.compression import SMOKE


@pytest.fixture(autouse=True)
def _ordinary_losses():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.slow
def test_a_run_writes_rows_a_table_and_a_plot(tmp_path):
    args = ["--smoke", "--tasks", "digits", "--out", str(tmp_path)]
    compression.main(args)
    compression.main(args)  # joined: rows of this task are made anew
    rows = _harness.read("compression", tmp_path)
    assert [row["contestant"] for row in rows] == [
        *("float32", "int4", "rank 1, error feedback")
    ]
    for row in rows:
        shape = SMOKE.seeds, SMOKE.programs + 1
        assert np.shape(row["accuracy"]) == shape
        assert np.all(
            (np.array(row["accuracy"]) >= 0) & (np.array(row["accuracy"]) <= 1)
        )
        assert row["num_rounds"][-1] == SMOKE.rounds * SMOKE.programs
    plain, quantized, _ = rows
    assert plain["bytes_each"] == 4 * plain["params"]
    # half a byte each, and a scale for every one of four parameters
    assert abs(quantized["bytes_each"] - plain["params"] / 2 - 4 * 4) <= 2
    text = (tmp_path / "compression.md").read_text(encoding="utf-8")
    assert f"| int4 | {quantized['bytes_each']:,} |" in text
    assert 0 < (tmp_path / "compression.png").stat().st_size < 100_000


def test_bytes_are_counted_up_to_an_accuracy():
    row = {"bytes_each": 10, "num_rounds": [0, 5, 10]}
    row["accuracy"] = [[0.1, 0.5, 0.6], [0.1, 0.3, 0.8]]
    assert compression.bytes_to(row, 0.4) == 50
    assert compression.bytes_to(row, 0.7) == 100
    assert compression.bytes_to(row, 0.71) is None


@pytest.mark.parametrize("optimum", [0.002, 0.1, 0.5, 3.0, 8.0])
def test_the_rate_lies_between_others_that_were_tried(optimum):
    asked = []

    def train(rate, seed):
        asked.append(rate)
        return [], np.log(rate / optimum) ** 2 if rate < 8 * optimum else np.nan

    tried = compression.tuned(train, seed=0)
    rate, rates = compression.best(tried), sorted(tried)
    assert len(asked) == len(set(asked)) == len(rates)
    assert abs(np.log(rate / optimum)) == min(
        abs(np.log(np.array(compression.LADDER) / optimum))
    )
    assert rates[0] < rate < rates[-1]
