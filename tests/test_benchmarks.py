"""The benchmarks at tiny sizes: they run, agree and report. Nothing here is timed."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from benchmarks import (
    _flops,
    _harness,
    _report,
    _scanned_workloads,
    _steps,
    _task_workloads,
    _workloads,
    long_sequences,
    memory,
    peers,
    rules,
    scaling,
    scans,
    tasks,
)
from benchmarks._harness import Contestant
from consensus_optax import _registry


@pytest.fixture(autouse=True)
def _ordinary_losses():
    """The workloads are what a user writes: biases broadcast."""
    with jax.numpy_rank_promotion("allow"):
        yield


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_close(tree, other, scale=1.0):
    for x, y in zip(leaves(tree), leaves(other), strict=True):
        np.testing.assert_allclose(x, scale * y, rtol=2e-4, atol=2e-6)


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in leaves(tree)))


@pytest.mark.slow
@pytest.mark.parametrize("name", _workloads.NAMES)
def test_contestants_agree_with_the_plain_gradient(name):
    work = _workloads.workload(name, smoke=True)
    everything = name == "mlp"  # the others take long to compile
    vias = tuple(_steps.VIAS) if everything else ("lazy",)
    few = {"mean", "sign_consensus", "cosine_filter"}

    @jax.jit  # one program for all: they share the backward pass
    def updates(params, batch):
        ours = {
            (reducer, via): step(params, batch)[0]
            for reducer, via, step in _steps.all_ours(work, vias)
            if everything or reducer in few
        }
        by_hand = _steps.stacked_min_max(work)(params, batch)
        return _steps.plain(work)(params, batch), by_hand, ours

    plain, by_hand, ours = updates(work.params, work.batch)
    assert_close(ours["mean", "lazy"], plain)
    assert_close(ours["sign_consensus", "lazy"], by_hand)
    agreeing = work.agreeing()
    plain, by_hand, ours = updates(agreeing.params, agreeing.batch)
    assert_close(by_hand, plain)
    length = norm(plain)
    scales = {
        "subspace_weighting": 1 / length,
        "clip_examples, mean": min(1, 1 / length),
    }
    for (reducer, _), update in ours.items():
        assert_close(update, plain, scales.get(reducer, 1.0))


def test_compiled_contestant_has_facts_and_moves_to_other_data():
    entry = _harness.compiled("double", lambda x: 2 * x, jnp.ones(3), compiles=2)
    assert entry.facts["compile_s"] > 0
    assert entry.facts["temp_bytes"] >= 0
    assert entry.facts["output_bytes"] == 12
    assert entry.on(jnp.full(3, 2.0)).run().tolist() == [4.0] * 3


def test_interleaving_bounds_slow_contestants_only():
    calls = []
    contestants = [
        Contestant("plain", lambda: calls.append("plain")),
        Contestant("other", lambda: calls.append("other")),
    ]
    times = _harness.interleave(contestants, repeats=8, seconds=0.0)
    assert sorted(times["plain"]) == list(range(8))  # a baseline is in every round
    assert len(times["other"]) == 3
    assert set(times["other"]) <= set(times["plain"])
    assert {"plain", "other"} == set(calls)


def test_measured_rows_survive_the_file(tmp_path, capsys):
    entries = [
        _harness.compiled("plain", jnp.sin, jnp.ones(8)),
        _harness.compiled("other", jnp.cos, jnp.ones(8)),
    ]
    rows = _harness.measure(entries, 4, 1.0, benchmark="test", param_bytes=32)
    assert [row["contestant"] for row in rows] == ["plain", "other"]
    assert rows[0]["ratio"] == rows[0]["ratio_q1"] == rows[0]["ratio_q3"] == 1
    for row in rows:
        assert row["ratio_q1"] <= row["ratio"] <= row["ratio_q3"]
        assert {"ms", "rounds", "compile_ratio"} <= set(row)
        assert row["temp_above_plain_in_params"] is not None
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == rows
    _harness.write("test", rows, _harness.environment(), tmp_path)
    back = _harness.read("test", tmp_path)
    assert [row["contestant"] for row in back] == ["plain", "other"]
    assert {"jax", "optax", "python"} <= set(back[0]["versions"])
    assert back[0]["cpu_count"] >= 1
    assert _harness.read("absent", tmp_path) == []


@pytest.mark.slow
def test_smoke_run_of_scans_has_every_model_both_ways(tmp_path, capsys):
    scans.main(["--smoke", "--out", str(tmp_path)])
    rows = _harness.read("scans", tmp_path)
    assert len(rows) == len(_scanned_workloads.NAMES) * (1 + 2 * len(scans.REDUCERS))
    assert all(row["ratio"] > 0 and row["baseline"] == "plain" for row in rows)
    _report.write(tmp_path)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| layers | transformer | lstm |" in text
    assert "wrote 21 rows" in capsys.readouterr().err


@pytest.mark.slow
def test_smoke_run_of_tasks_has_every_model_both_ways(tmp_path):
    tasks.main(["--smoke", "--out", str(tmp_path)])
    names = {row["contestant"] for row in _harness.read("tasks", tmp_path)}
    ours = {name for name in names if "torch" not in name.lower()}
    assert len(ours) == 1 + 2 * len(tasks.RULES)
    assert "| heads | pinn | rewards |" in (tmp_path / "tasks.md").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", _task_workloads.NAMES)
def test_rows_of_several_losses_are_those_that_they_are_compared_with(name):
    work = _task_workloads.workload(name, smoke=True)
    given = (work.params, work.batch)
    rows, dense, plain = jax.jit(
        lambda *given: (
            co.task_grad(work.loss, materialize=True)(*given),
            tasks.jacobian(work)(*given),
            tasks.plain(work)(*given),
        )
    )(*given)
    assert_close(rows, dense)
    assert_close(jax.tree.map(lambda x: x.mean(0), rows), plain)


@pytest.mark.slow
def test_smoke_run_of_long_sequences_has_every_reducer_both_ways(tmp_path):
    long_sequences.main(["--smoke", "--out", str(tmp_path)])
    rows = _harness.read("long_sequences", tmp_path)
    assert len(rows) == 1 + 2 * len(long_sequences.REDUCERS)
    found = {row["contestant"]: row for row in rows}
    for name in long_sequences.REDUCERS:
        inside, held = (found[f"{name} [{way}]"] for way in ("inside", "held"))
        assert inside["temp_bytes"] < held["temp_bytes"]
        # Two passes; and once what is looked at again where squares overflow.
        assert inside["flops_ratio"] < (1.1 if "sign" in name else 2.2)
    text = (tmp_path / "long_sequences.md").read_text(encoding="utf-8")
    assert "| B = 4, T = 32, d = 32 |" in text


def test_operations_are_counted_as_often_as_loops_turn():
    x = jnp.ones((2, 3))

    def program(x):
        turn = lambda y, _: (y @ jnp.ones((3, 3)), None)
        y = jax.lax.scan(turn, x, None, length=5)[0]
        goes_on = lambda y: y.sum() < 0
        y = jax.lax.while_loop(goes_on, lambda y: turn(y, None)[0], y)
        both = (lambda y: turn(y, None)[0], lambda y: y)
        return jax.lax.cond(y.sum() > 0, *both, jax.jit(lambda y: turn(y, None)[0])(y))

    jaxpr = jax.make_jaxpr(program)(x).jaxpr
    assert _flops.of_products(jaxpr, turns=7) == (5 + 7 + 1) * 2 * 2 * 3 * 3


def test_smoke_runs_keep_away_from_results():
    args = _harness.parse(_harness.parser("What?\n\nMore."), ["--smoke"])
    assert args.out != _harness.RESULTS
    assert args.repeats == 2


def test_slope_of_a_power_law():
    rows = [
        {"against": "width", "value": n, "contestant": "cubic", "ms": 3.0 * n**3}
        for n in (2, 4, 8, 16)
    ]
    assert scaling.slopes(rows, "width") == {"cubic": 3.0}


@pytest.mark.slow
def test_every_rule_is_measured_alone_and_in_a_step(monkeypatch, tmp_path):
    assert {*_registry.factories(), *rules.OTHERS} == set(rules.rules())
    monkeypatch.setattr(rules, "SMOKE_BATCHES", (8,))
    monkeypatch.setattr(rules, "WORKLOADS", ("mlp",))
    rules.main(["--smoke", "--out", str(tmp_path), "--rules", "mean", "mgda"])
    rows = _harness.read("rules", tmp_path)
    told = [(row["workload"], row["contestant"], row["baseline"]) for row in rows]
    assert told == [
        ("alone", "mean", "mean"),
        ("alone", "Gramian", "mean"),
        ("alone", "mgda", "mean"),
        ("mlp", "plain", "plain"),
        ("mlp", "mean", "plain"),
        ("mlp", "mgda", "plain"),
    ]
    assert all(row["us"] > 0 for row in rows)
    text = (tmp_path / "rules.md").read_text(encoding="utf-8")
    assert text.splitlines()[0] == "| rule | B = 8, us | mlp, x plain |"
    assert "| Gramian | " in text


@pytest.mark.slow
def test_rules_that_need_arguments_take_their_rows():
    params = jnp.zeros(rules.PARAMS)
    for batch_size in (min(rules.BATCHES), max(rules.BATCHES)):
        rows = rules.rows_of(batch_size)
        for name, make in rules.OTHERS.items():
            rule = make()
            update, _ = jax.eval_shape(rule.update, rows, rule.init(params), params)
            assert update.shape == params.shape, name


@pytest.mark.slow
def test_memory_is_told_in_parameters(monkeypatch):
    monkeypatch.setattr(memory, "OURS", (("sign_consensus", "lazy"),))
    work = _workloads.workload("mlp", smoke=True)
    rows = memory.rows_of(work, against="batch_size", value=8)
    names = [row["contestant"] for row in rows]
    assert names[0] == "plain"
    assert "sign_consensus [lazy]" in names
    assert rows[0]["temp_above_plain_in_params"] == 0
    assert "| plain | " in memory.table(rows, "batch_size")


def speed_rows():
    names = ["plain", "vmap(grad), min/max"]
    names += [f"{reducer} [lazy]" for reducer in _report.TARGETS]
    for index, name in enumerate(names):
        for workload in _workloads.NAMES:
            for regime in ("disagreeing", "agreeing"):
                ratio = 1.0 + index + (regime == "agreeing")
                yield {
                    "contestant": name,
                    "workload": workload,
                    "regime": regime,
                    "ms": 10 * ratio,
                    "ratio": ratio,
                    "ratio_q1": ratio - 0.1,
                    "ratio_q3": ratio + 0.1,
                    "compile_ratio": 2.0,
                    "temp_above_plain_in_params": 0.5,
                }


def test_report_says_what_is_missed(tmp_path):
    _harness.write("speed", speed_rows(), _harness.environment(), tmp_path)
    _report.write(tmp_path)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "**×4.00** (> 2.5)" in text  # sign consensus, the worse regime
    assert "| plain | ×2 (1.9–2.1), 20 ms |" in text
    assert 0 < (tmp_path / "speed.png").stat().st_size < 150_000
    shown = (tmp_path / "speed.md").read_text(encoding="utf-8")
    assert "| sign_consensus | **3** | **3** | **3** |" in shown  # as in the picture
    assert "| vmap(grad), min/max | 2 | 2 | 2 |" in shown


def test_report_of_nothing(tmp_path):
    _report.write(tmp_path)
    assert "Nothing" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_absent_peers_are_skipped_with_a_message(monkeypatch, capsys):
    nowhere = types.SimpleNamespace(find_spec=lambda name: None)
    monkeypatch.setattr(peers.importlib, "util", nowhere)
    work = _workloads.workload("mlp", smoke=True)
    assert list(peers.torch_contestants(work)) == []
    assert peers._jax_privacy(work) == {}
    assert capsys.readouterr().err.count("skipped: ") == 2
