"""The examples: few lines differ from the plain loops, and they train as well."""

import importlib
import json
import re

import jax
import numpy as np
import pytest

from benchmarks._harness import RESULTS
from benchmarks.loops import EXAMPLES, NAMES, NEEDS, changed_lines, table

# The noise of DP-SGD costs accuracy: (3, 1e-4) privacy here.
MARGIN = {"dp_sgd": 0.08}


def test_every_example_has_its_plain_loop():
    plain = {path.stem for path in (EXAMPLES / "plain").glob("[!_]*.py")}
    assert plain == set(NAMES)
    assert len(NAMES) == 14


@pytest.mark.parametrize("name", NAMES)
def test_at_most_five_lines_are_changed(name):
    own = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert 1 <= changed_lines(name) <= 5
    assert len(own.splitlines()) <= 80
    plain = (EXAMPLES / "plain" / f"{name}.py").read_text(encoding="utf-8")
    if name != "dp_sgd":  # whose batches are drawn by it
        assert "consensus_optax" not in plain


def test_the_table_of_the_page_is_that_of_the_results():
    text = (RESULTS / "loops.json").read_text(encoding="utf-8")
    rows = json.loads(text)
    assert [row["contestant"] for row in rows] == NAMES
    assert [row["changed_lines"] for row in rows] == list(map(changed_lines, NAMES))
    page = (EXAMPLES.parent / "docs" / "loops.md").read_text(encoding="utf-8")
    own, shown = (re.sub(r"\]\([^)]*\)", "]", text) for text in (table(rows), page))
    assert own in shown  # whatever the links lead to


def scalars(folder):
    """By name the steps that TensorBoard's event files have."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.iterdir()
    data, found = path.read_bytes(), {}
    while data:  # a length, its check sum, an event, its check sum
        size = int.from_bytes(data[:8], "little")
        event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
        for value in event.summary.value:
            found.setdefault(value.tag, []).append(event.step)
    return found


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_tensorboard_sees_what_the_rule_does(monkeypatch, tmp_path):
    pytest.importorskip("tensorboardX")
    module = importlib.import_module("examples.tensorboard")
    monkeypatch.setattr(module, "num_steps", lambda: 3)
    with jax.numpy_rank_promotion("allow"):
        module.main(str(tmp_path))
    found = scalars(tmp_path)
    assert {"loss", "consensus_ratio", "num_present", "ready"} <= set(found)
    assert all(steps == [0, 1, 2] for steps in found.values())


@pytest.mark.slow
@pytest.mark.standard_promotion
@pytest.mark.parametrize("name", NAMES)
def test_an_example_trains_as_its_plain_loop(name, monkeypatch):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    monkeypatch.setenv("CONSENSUS_OPTAX_SMOKE", "1")
    with jax.numpy_rank_promotion("allow"):
        own = importlib.import_module(f"examples.{name}").main()
        plain = importlib.import_module(f"examples.plain.{name}").main()
    assert np.isfinite(own)
    assert plain > 0.75, "the plain loop learns"
    assert own > plain - MARGIN.get(name, 0.03)
