"""The benchmark of several processes at tiny sizes: it runs, agrees and reports."""

import jax
import numpy as np
import pytest

from benchmarks import _harness, _reductions, _report, multihost
from benchmarks._harness import Contestant


@pytest.mark.slow
def test_contestants_reduce_what_pmean_does():
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    entries = {entry.name: entry for entry in _reductions.contestants(400, mesh)}
    assert {*_reductions.RULES} < {*entries}
    shapes = _reductions.shapes(400)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 400
    updates = {name: entry.run() for name, entry in entries.items()}
    for name, update in updates.items():
        assert {key: leaf.shape for key, leaf in update.items()} == shapes, name
    for key, leaf in updates["pmean"].items():
        np.testing.assert_allclose(updates["mean"][key], leaf, rtol=1e-6, atol=1e-6)
        assert np.abs(updates["median"][key] - leaf).max() > 0.01


def test_processes_take_the_same_steps_whatever_the_clock_says():
    calls = []
    note = lambda name: Contestant(name, lambda: calls.append(name))
    times = _reductions.in_step([note("a"), note("b")], repeats=3, calls=2)
    assert calls == [*"aaabbb", *"bbbaaa", *"aaabbb"]
    assert [*times["a"]] == [*times["b"]] == [0, 1, 2]


@pytest.mark.slow
def test_smoke_run_reports_all_setups(tmp_path, capsys):
    multihost.main(["--smoke", "--out", str(tmp_path)])
    rows = _harness.read("multihost", tmp_path)
    setups = {(row["num_processes"], row["num_devices"]) for row in rows}
    assert setups == {(1, 4), (2, 2)}
    assert all(row["ratio"] > 0 and row["baseline"] == "pmean" for row in rows)
    assert all(row["ratio"] == 1 for row in rows if row["contestant"] == "pmean")
    assert len(rows) == 7 + 6  # three rows at least for Krum
    _report.write(tmp_path)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| krum | " in text
    assert "against `pmean`" in text
