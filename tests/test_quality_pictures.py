"""The questions of pictures with wrong labels: data, rows, what is left out."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from benchmarks.quality import _arranged, _data, _networks, label_noise
from benchmarks.quality.__main__ import main, of_part
from benchmarks.quality._cells import Cells
from benchmarks.quality.all_questions import QUESTIONS

LABELS = np.array([2, 0, 1, 2, 1, 0, 0, 2, 1], np.int32)


def pictures(labels=LABELS):
    """Pixels tell the label, and a little else."""
    noise = np.random.default_rng(0).normal(size=(len(labels), 3))
    pixels = (np.eye(3)[labels] + 0.05 * noise).astype(np.float32)
    return jax.tree.map(jnp.asarray, _data.Pictures(pixels, labels, labels))


def arranged(kind, params, size=3):
    network = _networks.classifier(4, 3)
    rows = _arranged.by(kind, network, size)(params, pictures())
    assert sorted(rows.labels.tolist()) == sorted(LABELS.tolist())
    same = {
        tuple(x): y for x, y in zip(pictures().pixels.tolist(), LABELS, strict=True)
    }
    assert [same[tuple(x)] for x in rows.pixels.tolist()] == rows.labels.tolist()
    return rows.labels.reshape(-1, size).tolist()


def test_rows_are_of_one_label_or_of_the_same_classes():
    """And in the order of their first example in the batch: 2, 0, 1, 2, ..."""
    assert arranged("one label", None) == [[2] * 3, [0] * 3, [1] * 3]
    for row in arranged("same classes", None):
        assert sorted(row) == [0, 1, 2]
    assert arranged("random", None) == LABELS.reshape(3, 3).tolist()


@pytest.mark.parametrize(
    "kind",
    ["like activations", pytest.param("like gradients", marks=pytest.mark.slow)],
)
def test_what_looks_alike_stands_side_by_side(kind):
    """Three kinds of picture, far apart, which any wide network tells apart."""
    network = _networks.classifier(64, 3)
    params, find = network.init(jax.random.key(0)), _arranged.by(kind, network, 3)
    with jax.numpy_rank_promotion("allow"):
        rows = find(params, pictures())
    assert all(len(set(row)) == 1 for row in rows.labels.reshape(3, 3).tolist())


def test_a_chain_goes_to_the_nearest_that_is_left():
    """Directions at 0, 50, 20, 90 degrees; the last has no length: no cosine."""
    angles = np.deg2rad([0, 50, 20, 90, 0])
    points = np.stack([np.cos(angles), np.sin(angles)], -1) * [[1], [9], [2], [1], [0]]
    assert _arranged.chain(jnp.asarray(points @ points.T)).tolist() == [0, 2, 1, 3, 4]


def test_precision_recall_and_weights_by_hand():
    """Two rows of three left out, with three wrong labels of their four examples."""
    weights = jnp.array([0.0, 0.5, 0.25, 0.0])
    wrong = jnp.array([True, True, False, True, False, False, True, False])
    got = {k: float(v) for k, v in label_noise.left_out(weights, wrong).items()}
    assert got == {
        "left_out": 0.5,
        "left_out_wrong": 3 / 4,
        "wrong_left_out": 3 / 4,
        "wrong_weight": pytest.approx(1 / 3),  # float32
        "equal_rows": pytest.approx(0.75**2 / 0.3125 / 4),
    }
    nobody = label_noise.left_out(jnp.ones(4), wrong)
    assert np.isnan(nobody["left_out_wrong"])
    assert nobody["equal_rows"] == 1


@pytest.mark.slow
def test_halving_leaves_three_rows():
    """Of rows that all pass, the last weighs a half: as three of equal weight."""
    rows = {"w": jnp.eye(16)}
    weights = label_noise.coefficients(
        co.cosine_filter(2.0), {"w": jnp.zeros(16)}, jnp.ones(16), rows
    )
    got = label_noise.left_out(weights, jnp.zeros(16, bool))
    assert got["left_out"] == 0
    np.testing.assert_allclose(got["equal_rows"], 3 / 16, rtol=1e-6)


@pytest.mark.parametrize("data", _data.SETS)
def test_parts_are_apart_and_as_noisy_as_is_said(data):
    try:
        parts = _data.split(3, 0.3, data)
    except (FileNotFoundError, ModuleNotFoundError) as error:
        pytest.skip(str(error))
    _, kept, size = _data.SETS[data]
    assert [len(part.labels) for part in parts[1:]] == [kept, kept]
    seen = [{x.tobytes() for x in part.pixels} for part in parts]
    assert sum(map(len, seen)) - len(set.union(*seen)) <= 2  # twins, of the clothes
    for part, noise in zip(parts, (0.3, 0.3, 0.0), strict=True):
        assert part.pixels.shape == (len(part.labels), size)
        assert (part.labels != part.truth).sum() == round(noise * len(part.labels))


def test_data_sets_of_one_size_share_programs():
    asked = QUESTIONS["label_noise"]
    shapes = {
        tuple(v for k, v in setting.items() if k not in asked.data_alone)
        for setting in asked.settings
    }
    assert len(asked.settings) == 9
    assert shapes == {(64,), (784,)}


def test_parts_share_the_arms_of_a_question_out():
    asked = QUESTIONS["groups"]
    parts = [of_part(asked, place, 3).arms({}) for place in (1, 2, 3)]
    assert sorted(name for part in parts for name in part) == sorted(asked.arms({}))


def test_parts_write_files_of_their_own_that_become_one(tmp_path):
    whole = tmp_path / "made.jsonl"
    Cells(tmp_path / "made_up.jsonl").add({"arm": "other"}, {"x": np.ones(1)}, 1.0)
    for part, arm in (("1-2", "mean"), ("2-2", "median"), ("2-2", "late")):
        Cells(whole, {"commit": part}, part).add({"arm": arm}, {"x": np.ones(2)}, 1.0)
    assert not whole.exists()
    cells = Cells(whole)
    assert cells.get({"arm": "median"}) == {"x": [1.0, 1.0]}
    assert cells.get({"arm": "other"}) is None
    cells.add({"arm": "mean"}, {"x": np.zeros(2)}, 1.0)
    cells.join()
    lines = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [line["cell"]["arm"] for line in lines] == ["mean", "median", "late"]
    assert lines[0]["found"] == {"x": [0.0, 0.0]}  # what the question's file has stays
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "made.jsonl",
        "made_up.jsonl",
    ]


@pytest.mark.parametrize("part", ["0/2", "3/2", "2", "a/b"])
def test_a_part_that_is_none(part, capsys):
    with pytest.raises(SystemExit):
        main(["groups", "--part", part])
    assert "must be I/N, 1 <= I <= N" in capsys.readouterr().err
