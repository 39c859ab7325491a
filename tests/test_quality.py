"""The harness of benchmarks/quality: statistics, what is kept, what is asked."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import consensus_optax as co
from benchmarks.quality import _documents, _inference, arc, label_noise
from benchmarks.quality.__main__ import DOCUMENTS, RESULTS, known, main
from benchmarks.quality._answer import Answer, Choice, answers
from benchmarks.quality._cells import Cells
from benchmarks.quality._fit import fit
from benchmarks.quality._question import Arm, Problem, Question, Size, always
from benchmarks.quality.all_questions import QUESTIONS


def test_a_paired_difference_is_that_of_the_t_test():
    random = np.random.default_rng(0)
    ours, theirs = random.normal(size=(2, 9))
    got = _inference.difference(ours, theirs)
    known = stats.ttest_rel(ours, theirs)
    interval = known.confidence_interval(0.95)
    np.testing.assert_allclose(
        (got.low, got.high, got.p), (*interval, known.pvalue), rtol=1e-12
    )


@pytest.mark.parametrize("count", [3, 8, 30])
def test_the_least_effect_is_seen_four_times_of_five(count):
    """Of 4000 experiments: a share of 0.8 is off by 0.02 once in 600 times."""
    random = np.random.default_rng(count)
    gaps = random.normal(size=(4000, count))
    stderr = gaps.std(1, ddof=1) / np.sqrt(count)
    true = _inference._noncentrality(count - 1) / np.sqrt(count)  # of deviation 1
    t = (gaps.mean(1) + true) / stderr
    seen = (t > stats.t.ppf(0.975, count - 1)).mean()
    assert abs(seen - _inference.POWER) < 0.02


def test_holm_is_the_step_down_procedure():
    """0.01 * 4, then 0.02 * 3, then the larger of that and 0.03 * 2, then 0.5."""
    got = _inference.holm({"a": 0.03, "b": 0.01, "c": 0.5, "d": 0.02})
    assert {k: round(v, 12) for k, v in got.items()} == {
        "b": 0.04,
        "d": 0.06,
        "a": 0.06,
        "c": 0.5,
    }


def test_seeds_of_one_task_are_one_unit():
    values, units = np.array([1.0, 3.0, 10.0, 20.0]), np.array([0, 0, 1, 1])
    np.testing.assert_array_equal(_inference.by_unit(values, units), [2.0, 15.0])


def test_equal_arms_differ_by_nothing_and_one_unit_says_nothing():
    same = _inference.difference(np.ones(3), np.ones(3))
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert np.isnan(_inference.difference(np.ones(1), np.zeros(1)).p)


def test_a_line_that_a_crash_cut_off_is_asked_again(tmp_path):
    path = tmp_path / "cells.jsonl"
    cells = Cells(path, {"commit": "abc"})
    cells.add({"arm": "mean", "seeds": 2}, {"x": np.array([1 / 3, 2.0])}, 12.34)
    whole = path.read_text()
    path.write_text(whole + whole[:-20].replace("mean", "median"))
    again = Cells(path)
    assert again.get({"seeds": 2, "arm": "mean"}) == {"x": [0.33333, 2.0]}
    assert again.get({"arm": "median", "seeds": 2}) is None
    again.add({"arm": "median", "seeds": 2}, {"x": np.array([5.0, np.nan])}, 12.0)
    assert Cells(path).get({"arm": "median", "seeds": 2}) == {"x": [5.0, None]}
    line = json.loads(path.read_text().splitlines()[0])
    assert (line["commit"], line["seconds"]) == ("abc", 12.3)


def question(asked):
    """Values that say which rate is best, without any training."""

    def problem(setting, rows, seeds, tuning):
        asked.append((rows, tuple(seeds), tuning))
        units = np.arange(len(seeds))
        return Problem(None, None, None, None, (), units)

    return Question(
        name="made up",
        problem=problem,
        settings=({"noise": 0.1},),
        arms=lambda setting: {"mean": Arm(always(lambda: None))},
        rows=(2, 4),
        size=Size(steps=1, seeds=3, tuning_seeds=2, rates=(0.1, 0.2, 0.3)),
        shown={"test_accuracy": "Test accuracy, %"},
        pictured=("test_accuracy",),
        column="noise",
    )


def test_rows_and_rate_are_chosen_on_seeds_that_answer_nothing(tmp_path, monkeypatch):
    asked, fitted = [], []

    def fit(problem, arm, rows, rates, size, decay, name):
        fitted.append((rows, rates))
        best = np.array([rows * rate if rate < 0.25 else np.nan for rate in rates])
        values = np.broadcast_to(
            best[:, None, None], (len(rates), len(problem.units), 1)
        )
        return {"valid_accuracy": values, "test_accuracy": values}

    monkeypatch.setattr("benchmarks.quality._answer.fit", fit)
    cells = Cells(tmp_path / "cells.jsonl")
    (answer,) = answers(question(asked), cells, lambda text: None, train=True)
    assert answer.choice == (4, 0.2)
    assert fitted == [(2, (0.1, 0.2, 0.3)), (4, (0.1, 0.2, 0.3)), (4, (0.2,))]
    assert [tuning for *_, tuning in asked] == [True, True, False]
    tuning, final = set(asked[0][1]), set(asked[2][1])
    assert not tuning & final
    assert answer.curves["test_accuracy"].shape == (3, 1)

    again = Cells(tmp_path / "cells.jsonl")
    (repeated,) = answers(question(asked), again, lambda text: None, train=False)
    assert repeated.choice == answer.choice
    assert len(fitted) == 3


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_table_has_the_mean_and_baselines(name):
    asked = QUESTIONS[name]
    for setting in asked.settings:
        arms = asked.arms(setting)
        assert asked.baseline in arms
        if name not in ("structure",) and not setting.get("weight_decay", 0) > 0.001:
            assert {"normalized mean", "cautious Adam"} <= set(arms)
    assert asked.size.seeds > 1


def quadratic(seeds):
    """Rows of a square around a point of each seed, and where training ends."""

    def rows(params, batch):
        of_one = jax.value_and_grad(lambda p, x: ((p - x) ** 2).sum())
        return jax.vmap(of_one, (None, 0))(params, batch)

    centre = np.arange(seeds, dtype=np.float32)[:, None, None]
    train = centre + np.float32([[-0.5], [0.5], [1.0]])
    return Problem(
        init=lambda key: jax.random.normal(key, (1,)),
        rows=rows,
        batch=lambda train, key, step: (train, None),
        scores=lambda params, *parts: {"at": params[0]},
        data=(train, train, train),
        units=np.arange(seeds),
    )


@pytest.mark.standard_promotion
def test_training_at_several_rates_is_that_of_each_alone():
    """Three seeds at two rates; Adam's steps as optax takes them."""
    size = Size(steps=4, seeds=3, tuning_seeds=1, rates=(), evaluations=2)
    arm, rates = Arm(always(co.mean)), (0.1, 0.3)
    whole = fit(quadratic(3), arm, 3, rates, size)
    assert whole["at"].shape == (2, 3, 2)
    problem = quadratic(3)
    for place, rate in enumerate(rates):
        begin, _ = jax.random.split(jax.random.key(2))
        params, adam = problem.init(begin), optax.adam(rate)
        state = adam.init(params)
        for step in range(4):
            gradient = problem.rows(params, problem.data[0][2])[1].mean(0)
            updates, state = adam.update(gradient, state, params)
            params = params + updates
            if step % 2:  # some ulp a step
                got = whole["at"][place, 2, step // 2]
                np.testing.assert_allclose(got, params[0], rtol=1e-5)


@pytest.mark.standard_promotion
def test_a_rate_falls_to_a_tenth_where_it_is_told_to():
    """Rows of a constant 1: every step of Adam is its rate."""
    ones = lambda params, batch: (jnp.zeros(3), jnp.ones((3, 1)))
    problem = quadratic(1)._replace(rows=ones)
    size = Size(steps=4, seeds=1, tuning_seeds=1, rates=(), evaluations=4)
    arm = Arm(always(co.mean))
    found = fit(problem, arm, 3, (0.1,), size._replace(falls_after=0.75))
    moved = np.diff(found["at"].ravel())  # after the first of four
    np.testing.assert_allclose(moved, [-0.1, -0.1, -0.01], rtol=1e-4)


def test_seeds_of_an_answer_may_begin_elsewhere(tmp_path, monkeypatch):
    """They are another cell; those of choosing stay."""
    made = lambda *args: {
        key: np.ones((len(args[3]), len(args[0].units), 1))
        for key in ("valid_accuracy", "test_accuracy")
    }
    monkeypatch.setattr("benchmarks.quality._answer.fit", made)
    cells = Cells(tmp_path / "cells.jsonl")
    for first in (0, 100):
        asked = []
        made_up = question(asked)
        size = made_up.size._replace(first_seed=first)
        made_up = made_up._replace(rows=(2,), size=size)
        list(answers(made_up, cells, lambda text: None, train=True))
        assert asked[-1][1:] == ((first, first + 1, first + 2), False)
        assert len(asked) == (2 if first == 0 else 1)  # chosen once


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_marks_tell_what_a_filter_leaves_out():
    """The third row is against the two others."""
    rows = {"w": jnp.array([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.0]])}
    params, losses = {"w": jnp.zeros(2)}, jnp.array([1.0, 3.0, 2.0])
    of = lambda rule: label_noise.coefficients(rule, params, losses, rows)
    np.testing.assert_array_equal(of(co.cosine_filter(0.97)) > 0, [True, True, False])
    kept = of(co.keep_smallest_losses(2))
    np.testing.assert_allclose(kept, [0.5, 0, 0.5], atol=1e-6)


def test_a_document_gets_the_tables_of_the_results_and_nothing_else():
    text = "a\n<!-- table made test_accuracy -->\nold\n<!-- end -->\nb\n"
    asked = question([])
    answer = Answer(
        {"noise": 0.1}, "mean", Choice(2, 0.1), {"test_accuracy": np.full((3, 1), 0.5)}
    )
    got = _documents.refreshed(text, {"made": (asked, [answer])})
    assert got.startswith("a\n<!-- table made test_accuracy -->\n| noise | 0.1 |")
    assert "| mean | 50.0 ± 0.0 |\n<!-- end -->\nb\n" in got
    assert "not run yet" in _documents.refreshed(got, {"made": (asked, [])})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_documents_have_the_tables_of_the_results(path):
    text = path.read_text(encoding="utf-8")
    assert "<!-- differences" in text
    assert _documents.refreshed(text, known(RESULTS)) == text


def test_results_are_small_and_name_no_folder():
    for path in RESULTS.iterdir():
        assert path.stat().st_size < (4e5 if path.suffix == ".jsonl" else 1.5e5), path
        if path.suffix == ".jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            assert all({"versions", "device", "commit"} <= set(line) for line in lines)
            assert "/" not in json.dumps([line["versions"] for line in lines])


# Others differ from these by their data or network alone.
DIFFERENT = set(QUESTIONS) - {"shortcuts_published", "clients_fashion", "adacons_cnn"}
DIFFERENT -= {"shortcuts_rates"}
DIFFERENT -= {name for name in QUESTIONS if name.endswith("_large")}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DIFFERENT))
def test_a_question_is_answered_at_smoke_size(name, tmp_path, monkeypatch):
    monkeypatch.setattr(arc, "TASKS", 3)
    monkeypatch.setattr(arc, "TUNING_TASKS", 1)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        assert main([name, "--smoke", "--out", str(tmp_path)]) == 0
    first = (tmp_path / f"{name}.md").read_text()
    assert "| mean |" in first
    assert main([name, "--smoke", "--tables", "--out", str(tmp_path)]) == 0
    assert (tmp_path / f"{name}.md").read_text() == first
    assert (tmp_path / f"{name}.png").stat().st_size > 5000
