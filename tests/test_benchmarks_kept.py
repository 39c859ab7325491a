"""Rows of several runs: what is finished stays, processes share the work."""

import argparse
from pathlib import Path

import pytest

from benchmarks import (
    _client_tasks,
    _harness,
    _kept,
    _report,
    breakdown,
    compression,
)
from benchmarks._kept import Kind
from consensus_optax import tasks


def place(row):
    return row["x"], row["name"]


def write_names(rows, path):
    path.write_text(" ".join(row["name"] for row in rows), encoding="utf-8")


KIND = Kind("made", place, lambda rows: f"{len(rows)} rows", write_names)


def row(x, name, value):
    return {"x": x, "name": name, "value": value}


def run(rows, *options, out):
    parser = argparse.ArgumentParser()
    _kept.add_options(parser)
    parser.add_argument("--out", type=Path, default=out)
    made = []

    def make(done):
        for each in rows:
            if not done(x=each["x"], name=each["name"]):
                made.append(each["name"])
                yield each

    _kept.keep(KIND, parser.parse_args(list(map(str, options))), make)
    return made


def values(folder):
    return [(r["x"], r["name"], r["value"]) for r in _harness.read("made", folder)]


def test_rows_are_made_anew_or_stay_and_are_in_order(tmp_path):
    run([row(2, "a", 1), row(1, "b", 1)], out=tmp_path)
    run([row(2, "a", 2), row(1, "a", 2)], out=tmp_path)
    assert values(tmp_path) == [(1, "a", 2), (1, "b", 1), (2, "a", 2)]
    assert (tmp_path / "made.md").read_text(encoding="utf-8") == "3 rows\n"
    assert (tmp_path / "made.png").read_text(encoding="utf-8") == "a b a"
    assert "jax" in _harness.read("made", tmp_path)[0]["versions"]


def test_what_is_finished_is_there_when_a_run_is_stopped_and_goes_on(tmp_path):
    def stopped():
        yield row(1, "a", 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(stopped(), out=tmp_path)
    assert values(tmp_path) == [(1, "a", 1)]
    again = [row(1, "a", 2), row(1, "b", 2)]
    assert run(again, "--resume", out=tmp_path) == ["b"]
    assert values(tmp_path) == [(1, "a", 1), (1, "b", 2)]


def test_runs_are_merged_and_the_later_counts(tmp_path):
    for folder, name in (("one", "a"), ("two", "b")):
        run([row(1, name, 1), row(2, "c", folder)], out=tmp_path / folder)
    run([row(3, "d", 0)], out=tmp_path)
    merged = ["--merge", tmp_path / "one", tmp_path / "two"]
    assert run([row(9, "never", 0)], *merged, out=tmp_path) == []
    wanted = [(1, "a", 1), (1, "b", 1), (2, "c", "two"), (3, "d", 0)]
    assert values(tmp_path) == wanted
    with pytest.raises(SystemExit, match=r"there is no made.json in .*three"):
        run([], "--merge", tmp_path / "three", out=tmp_path)


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path):
    _harness.write("made", [row(1, "a", 1)], {}, tmp_path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        _harness.write("made", [row(1, "a", object())], {}, tmp_path)
    assert values(tmp_path) == [(1, "a", 1)]
    assert [path.name for path in tmp_path.iterdir()] == ["made.json"]


@pytest.mark.slow
def test_the_report_writes_tables_and_pictures_again(tmp_path):
    """Of the results that there are, whatever run made them."""
    for kind in (breakdown.KIND, compression.KIND):
        rows = _harness.read(kind.name, _harness.RESULTS)
        _harness.write(kind.name, rows, {}, tmp_path)
    _report.write(tmp_path)
    for kind in (breakdown.KIND, compression.KIND):
        text = (tmp_path / f"{kind.name}.md").read_text(encoding="utf-8")
        published = _harness.RESULTS / f"{kind.name}.md"
        assert text == published.read_text(encoding="utf-8")
        assert 0 < (tmp_path / f"{kind.name}.png").stat().st_size < 300_000
        assert text.strip() in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_tasks_whose_data_are_not_there_are_left_out_or_an_error(monkeypatch, capsys):
    def absent(folder="usual"):
        raise FileNotFoundError(f"{folder} has no such file")

    monkeypatch.setattr(tasks, "fashion_mnist", absent)
    monkeypatch.setattr(tasks, "digits", lambda: "digits")
    monkeypatch.setattr(tasks, "shakespeare", lambda: "roles")
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    _client_tasks.add_options(parser)
    made = lambda *options: _client_tasks.asked_for(parser.parse_args(options))
    assert [*made()] == ["digits", "shakespeare"]
    assert "fashion_mnist is left out: usual has no" in capsys.readouterr().err
    assert [*made("--smoke")] == ["digits"]
    asked = ["--tasks", "fashion_mnist", "--fashion-mnist", "mine"]
    with pytest.raises(SystemExit, match="--tasks fashion_mnist: mine has no such"):
        made(*asked)


def test_all_results_are_those_of_each_table():
    """What is published in one file is what each script has written."""
    published = (_harness.RESULTS / "table.md").read_text(encoding="utf-8")
    assert published == _report.table(_harness.RESULTS)
