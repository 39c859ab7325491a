"""The table and the JSON say what was found, and under which conditions."""

import json

import jax
import numpy as np
import pytest

from consensus_optax import comparison
from tests.comparison.tiny import result

pytestmark = pytest.mark.standard_promotion  # for optax.adam


@pytest.mark.slow
def test_table_has_a_line_for_each_rule_and_says_how():
    text = comparison.table(result())
    head, rule, *body = text.split("\n\n")[0].splitlines()
    assert [line.split("|")[1].strip() for line in body] == list(result().curves)
    assert {line.count("|") for line in (head, rule, *body)} == {11}
    assert "2 problems x 2 seeds" in text
    assert "4 steps of Adam at learning rate 0.003" in text
    assert "of 4 test grids" in text


@pytest.mark.slow
def test_json_holds_settings_versions_device_and_numbers():
    report = json.loads(comparison.to_json(result()))
    assert report["settings"]["steps"] == 4
    assert report["versions"]["jax"] == jax.__version__
    assert report["device"]["platform"] == jax.devices()[0].platform
    assert report["task"]["problems"] == ["two", "three"]
    assert report["task"]["train_examples"] == [2, 3]
    assert report["interrupted"] is False
    rule = report["rules"]["sign_consensus"]
    assert set(rule["final"]) == set(comparison.METRICS)
    assert len(rule["curves"]["test_accuracy"]) == len(report["steps"])
    assert len(rule["every_step"]["consensus_ratio"]) == 4
    accuracy = comparison.final(result().curves["sign_consensus"], "test_accuracy")
    np.testing.assert_allclose(
        rule["final_of_each_model"]["test_accuracy"], accuracy, rtol=1e-4
    )
    assert report["rules"]["adam"]["test_accuracy_difference"]["mean"] == 0


@pytest.mark.slow
def test_json_knows_no_nan():
    report = result()._replace(settings={"steps": 4, "seeds": 2, "odd": float("nan")})
    assert json.loads(comparison.to_json(report))["settings"]["odd"] is None


def test_the_caption_names_rules_that_stand_still():
    curves = dict(result().curves)
    assert "steps in a row" not in comparison.caption(result())
    rule = curves["sign_consensus"]
    assert set(rule.every_step) >= {"steps_without_consensus"}
    waited = np.zeros_like(rule.every_step["consensus_ratio"])
    waited[-1, 0, 1] = 12
    every_step = rule.every_step | {"steps_without_consensus": waited}
    curves["sign_consensus"] = rule._replace(every_step=every_step)
    text = comparison.caption(result()._replace(curves=curves))
    assert "sign_consensus: for up to 12 steps in a row less than 1 %" in text
