"""Processes that share the questions of benchmarks/quality."""

import numpy as np
import pytest

from benchmarks.quality import __main__ as quality
from benchmarks.quality import _jobs
from benchmarks.quality._question import smoke

NAME = "conflicts"


def made_up(problem, arm, rows, rates, size, *rest):
    """What no training has found, the same whoever asks."""
    asked = quality.QUESTIONS[NAME]
    shape = len(rates), len(problem.units), size.evaluations
    values = np.random.default_rng(rows).random(shape)
    return dict.fromkeys({asked.metric, *asked.shown}, values)


def test_parts_of_the_arms_join_to_the_whole(tmp_path, monkeypatch, capsys):
    """In one process, one after the other; nothing is asked twice."""
    asked = []

    def in_turn(arguments, jobs):
        asked.extend(arguments)
        parts = [f"{place}/{jobs}" for place in range(1, jobs + 1)]
        return not any(quality.main([*arguments, "--part", part]) for part in parts)

    monkeypatch.setattr("benchmarks.quality._answer.fit", made_up)
    monkeypatch.setattr(quality, "finished", in_turn)
    one, three = tmp_path / "one", tmp_path / "three"
    assert quality.main([NAME, "--smoke", "--out", str(one)]) == 0
    arguments = [NAME, "--smoke", "--out", str(three)]
    assert quality.main([*arguments, "--jobs", "3"]) == 0
    assert asked == arguments
    for name in (f"{NAME}.md", f"{NAME}.jsonl", f"{NAME}.png"):
        assert (three / name).exists()
    assert (three / f"{NAME}.md").read_text() == (one / f"{NAME}.md").read_text()
    lines = (three / f"{NAME}.jsonl").read_text().splitlines()
    arms = smoke(quality.QUESTIONS[NAME])
    assert len(lines) == sum(len(arms.arms(setting)) for setting in arms.settings)
    assert sorted(path.suffix for path in three.iterdir()) == [".jsonl", ".md", ".png"]

    monkeypatch.setattr(quality, "finished", lambda arguments, jobs: False)
    assert quality.main([*arguments, "--jobs", "2"]) == 1
    assert "what is finished is kept" in capsys.readouterr().err


@pytest.mark.slow
def test_all_processes_have_to_end_well(capfd):
    assert _jobs.finished(["--help"], 2)
    assert capfd.readouterr().out.count("usage") == 2
    assert not _jobs.finished(["no question"], 2)
    assert "unknown question 'no question'" in capfd.readouterr().err
