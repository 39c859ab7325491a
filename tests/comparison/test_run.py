"""The comparison is fair, ignores padding, and survives an interruption."""

import jax
import numpy as np
import pytest

import consensus_optax as co
from consensus_optax import comparison
from tests.comparison.tiny import (
    PROBLEMS,
    SMALL,
    QuickLab,
    grid_task,
    label_task,
    problem,
    result,
)

pytestmark = [pytest.mark.standard_promotion, pytest.mark.slow]  # for optax.adam

RULES = {"mean": co.mean(), "sign_consensus": co.sign_consensus()}


def same(one, other):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other
    )


def test_shapes_and_steps():
    found = result()
    assert list(found.curves) == ["adam", "mean", "sign_consensus"]
    assert list(found.rules) == ["mean", "sign_consensus"]
    np.testing.assert_array_equal(found.steps, [0, 2, 4])
    for curves in found.curves.values():
        assert set(curves.metrics) == set(comparison.METRICS)
        assert {v.shape for v in curves.metrics.values()} == {(3, 2, 2)}
        assert {v.shape for v in curves.every_step.values()} == {(4, 2, 2)}
        assert curves.seconds.shape == (2,)
    assert "consensus_ratio" in found.curves["sign_consensus"].every_step


def test_every_rule_starts_from_the_same_weights():
    start = [
        {k: v[0] for k, v in curves.metrics.items()}
        for curves in result().curves.values()
    ]
    same(start[0], start[1])
    same(start[0], start[2])


def test_mean_of_rows_is_plain_adam():
    curves = result().curves
    same(curves["adam"].metrics, curves["mean"].metrics)
    same(curves["adam"].every_step["loss"], curves["mean"].every_step["loss"])
    assert (
        curves["mean"].metrics["train_loss"][-1]
        != curves["sign_consensus"].metrics["train_loss"][-1]
    ).any()


def test_measured_ratio_is_the_one_the_rule_reports():
    curves = result().curves["sign_consensus"]
    same(curves.metrics["consensus_ratio"][1], curves.every_step["consensus_ratio"][2])


def test_a_problem_is_trained_as_if_alone_and_unpadded():
    alone = grid_task({"two": problem(2, size=(3, 3))})
    rules = {"sign_consensus": co.sign_consensus()}
    found = comparison.compare(alone, rules, steps=4, **SMALL)
    for name, curves in found.curves.items():
        together = result().curves[name].metrics
        same(curves.metrics, {k: v[:, :1] for k, v in together.items()})


def test_labels_and_groups():
    found = comparison.compare(label_task(), {"mean": co.mean()}, steps=2, **SMALL)
    np.testing.assert_array_equal(found.steps, [0, 1, 2])
    same(found.curves["adam"].metrics, found.curves["mean"].metrics)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("consensus_optax.comparison._run.Lab", QuickLab)


class Interrupt:
    """Presses Ctrl-C when a rule is at a given call of the progress callback."""

    def __init__(self, rule, call):
        self.rule, self.left = rule, call

    def __call__(self, name, steps):
        self.left -= name == self.rule
        if self.left == 0 and name == self.rule:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("rule", "call", "kept", "steps"),
    [
        ("adam", 1, [], [0]),  # while compiling
        ("sign_consensus", 1, [], [0]),  # before anything has begun
        ("mean", 2, ["adam", "mean"], [0, 1]),  # before the last has begun
        ("sign_consensus", 2, ["adam", "mean", "sign_consensus"], [0, 1]),
        ("mean", 4, ["adam", "mean", "sign_consensus"], [0, 1, 2]),
    ],
)
def test_interruption_keeps_what_all_have_finished(rule, call, kept, steps):
    found = comparison.compare(
        grid_task(PROBLEMS),
        RULES,
        steps=4,
        **(SMALL | {"num_evaluations": 4}),
        progress=Interrupt(rule, call),
    )
    assert found.interrupted
    assert list(found.curves) == kept
    np.testing.assert_array_equal(found.steps, steps)
    for curves in found.curves.values():
        np.testing.assert_array_equal(curves.metrics["test_loss"][:, 0, 0], steps)
        assert len(curves.seconds) == len(curves.every_step["loss"]) == len(steps) - 1


@pytest.mark.usefixtures("quick")
def test_last_round_may_be_shorter():
    settings = SMALL | {"num_evaluations": 3}
    found = comparison.compare(grid_task(PROBLEMS), RULES, steps=7, **settings)
    np.testing.assert_array_equal(found.steps, [0, 2, 4, 6, 7])


@pytest.mark.usefixtures("quick")
def test_a_rule_that_cannot_work_is_left_out():
    rules = {"picky": "picky", "mean": co.mean()}
    found = comparison.compare(grid_task(PROBLEMS), rules, steps=2, **SMALL)
    assert found.failed == {"picky": "needs 7 rows; got 3"}
    assert list(found.rules) == ["mean"]
    assert "Left out: picky: needs 7 rows; got 3" in comparison.table(found)
