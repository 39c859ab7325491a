"""How many rows: the script runs, and a page shows what it found."""

import json
from pathlib import Path

import jax
import pytest

from benchmarks import how_many_rows

ROOT = Path(__file__).parents[1]


def test_the_table_of_the_page_is_that_of_the_results():
    results = ROOT / "benchmarks" / "results"
    text = (results / "how_many_rows.json").read_text(encoding="utf-8")
    table = how_many_rows.table(rows := json.loads(text))
    assert table in (results / "how_many_rows.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "which_rule.md").read_text(encoding="utf-8")
    assert "{include} ../benchmarks/results/how_many_rows.md" in page
    assert {row["contestant"] for row in rows} == set(how_many_rows.RULES)


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_smoke_run_of_a_rule():
    setting = how_many_rows.Setting(num_steps=3, seeds=2)
    with jax.numpy_rank_promotion("allow"):
        row = how_many_rows.run("sign_consensus()", 4, setting)
        plain = how_many_rows.run("plain Adam", 4, setting)
    assert row["num_rows"] == 4
    assert plain["num_rows"] is None
    assert len(row["accuracy"]) == 2
    assert 0 < row["consensus_ratio"] < 1
    assert how_many_rows.table([row, plain]).count("±") == 2
