"""Benchmarks of many clients at tiny sizes: breakdown curves, rounds of many."""

import jax
import numpy as np
import pytest

from benchmarks import _harness, _kept, breakdown, clients
from consensus_optax import comparison, tasks


@pytest.fixture(autouse=True)
def _ordinary_losses():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.slow
def test_curves_tables_and_pictures_are_of_one_run(tmp_path):
    pytest.importorskip("sklearn", reason='needs pip install "consensus_optax[demo]"')
    options = ["--rules", "mean", "--attacks", "label_flip", "--out", str(tmp_path)]
    breakdown.main(["--smoke", *options])
    rows = _harness.read("breakdown", tmp_path)
    assert [row["share"] for row in rows] == [0.0, *breakdown.SHARES]
    assert all(len(row["accuracy"]) == breakdown.SMOKE.seeds for row in rows)
    text = (tmp_path / "breakdown.md").read_text(encoding="utf-8")
    last = 100 * np.mean(rows[-1]["accuracy"])
    assert f"{last:.1f} ± " in text
    assert " labels |" in text
    assert 0 < (tmp_path / "breakdown.png").stat().st_size < 200_000


def test_what_is_not_made_anew_stays():
    row = {"task": "digits", "contestant": "mean", "attack": "mimic", "share": 0.1}
    old, new = {**row, "accuracy": [0.1]}, {**row, "accuracy": [0.2]}
    other = {**old, "share": 0.2}
    assert _kept.joined(breakdown.KIND, [other, old], [new]) == [new, other]


def test_the_worst_attack_is_told_and_who_cannot_be():
    row = {"contestant": "a", "share": 0.1, "task": "t"}
    rows = [
        {**row, "attack": "mimic", "accuracy": [0.5, 0.6]},
        {**row, "attack": "strongest_ipm", "accuracy": [0.2, 0.4]},
        {**row, "attack": "silence", "accuracy": None},
    ]
    assert breakdown.worst(rows)["attack"] == "strongest_ipm"
    assert "| a | - | 30.0 ± 10.0 IPM | - | - |" in breakdown.table(rows)


@pytest.mark.slow
def test_memory_is_of_those_who_are_there():
    """Ten times as many clients to choose from: their counts alone are looked at."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 5, (8, 60)).astype(np.uint8)
    texts = tasks.Texts(ids, np.full(8, 60, np.int32))
    work = comparison.shakespeare_clients(
        tasks.Roles(tuple("abcdefgh"), "vwxyz", texts, texts), width=4
    )
    setting = clients.SMOKE._replace(sampled=(16,), copies=(1, 10), chunks=(4,))
    rows = clients.run(work, setting, 2, 0.1)
    memory = {row["contestant"]: row["temp_bytes"] for row in rows}
    for rule in ("mean()", "median()"):
        few = memory[f"{rule}, 8 clients, by 4, 1 device"]
        many = memory[f"{rule}, 80 clients, by 4, 1 device"]
        # a few numbers for each of 72 more, to draw from
        assert many - few < 72 * 100
    assert "8 devices" in clients.table(rows)
