"""Fashion-MNIST: small made files, and the published ones where they are."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from consensus_optax import tasks
from consensus_optax.tasks._fashion_mnist import FOLDER, _load

NAMES = {
    part: [f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    for part in ("train", "t10k")
}


def idx(array: np.ndarray) -> bytes:
    """By the format's description, not by its reader."""
    head = bytes([0, 0, 8, array.ndim])
    return head + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    """Six and four pictures; the first pixel of each tells its label."""
    for part, count in (("train", 6), ("t10k", 4)):
        labels = np.arange(count, dtype=np.uint8)
        pixels = np.full((count, 28, 28), 255, np.uint8)
        pixels[:, 0, 0] = labels
        for name, array in zip(NAMES[part], (pixels, labels), strict=True):
            (tmp_path / name).write_bytes(gzip.compress(idx(array)))
    return tmp_path


def test_pictures_keep_their_labels(folder):
    task = tasks.fashion_mnist(folder)
    for part, count in ((task.train, 6), (task.test, 4)):
        assert part.inputs.shape == (1, count, 28, 28, 1)
        assert (part.inputs.dtype, part.targets.dtype) == (np.float32, np.int32)
        told = part.inputs[0, :, 0, 0, 0] * 255
        np.testing.assert_allclose(told, part.targets[0], rtol=1e-6)  # of x / 255
        assert sorted(part.targets[0]) == list(range(count))
        assert part.inputs.max() == 1


def test_the_seed_draws_as_many_as_are_wanted(folder):
    drawn = [
        tasks.fashion_mnist(folder, num_train=3, num_test=2, seed=seed)
        for seed in range(6)
    ]
    assert {x.train.targets.shape + x.test.targets.shape for x in drawn} == {
        (1, 3, 1, 2)
    }
    assert len({tuple(x.train.targets[0].tolist()) for x in drawn}) > 1


def test_noise_is_in_the_training_labels_only(folder):
    clean = tasks.fashion_mnist(folder)
    noisy = tasks.fashion_mnist(folder, label_noise=0.5)
    assert (clean.train.targets != noisy.train.targets).sum() == 3
    np.testing.assert_array_equal(clean.test.targets, noisy.test.targets)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\x0d\3", "3 axes, that is begin with 00000803; got 00000d03"),
        (b"", "begin with 00000803; got nothing"),
        (
            b"\0\0\x08\3\0\0\0\7",
            r"shape \(7, 0, 0\); got 0 after the head",
        ),
        (idx(np.zeros((2, 3, 4), np.uint8))[:-1], r"shape \(2, 3, 4\); got 23 after"),
    ],
)
def test_other_files_are_not_taken(folder, content, message):
    (folder / NAMES["train"][0]).write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=message):
        tasks.fashion_mnist(folder)


def test_every_picture_has_a_label(folder):
    labels = np.zeros(5, np.uint8)
    (folder / NAMES["train"][1]).write_bytes(gzip.compress(idx(labels)))
    with pytest.raises(ValueError, match="a label for each of the 6 pictures; got 5"):
        tasks.fashion_mnist(folder)


@pytest.mark.parametrize("name", [name for pair in NAMES.values() for name in pair])
def test_an_absent_file_is_named_with_how_to_get_it(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: .*dataset-fashion-mnist"):
        tasks.fashion_mnist(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 7}, "`num_train` must be at most 6; got 7"),
        ({"num_test": 0}, "`num_test` must be at least 1; got 0"),
    ],
)
def test_bad_numbers(folder, options, message):
    with pytest.raises(ValueError, match=message):
        tasks.fashion_mnist(folder, **options)


@pytest.mark.skipif(
    not Path(FOLDER).exists(), reason="needs apt install dataset-fashion-mnist"
)
def test_the_clothes_themselves():
    for part, count in (("train", 6000), ("t10k", 1000)):
        pictures, labels = _load(Path(FOLDER), part)
        np.testing.assert_array_equal(np.bincount(labels), [count] * 10)
        assert pictures.shape == (10 * count, 28, 28, 1)
        # Its users normalize by the mean 0.2860, that of the training part.
        np.testing.assert_allclose(pictures.mean() / 255, 0.286, atol=1e-3)
    assert tasks.fashion_mnist(num_train=9).train.inputs.shape == (1, 9, 28, 28, 1)
