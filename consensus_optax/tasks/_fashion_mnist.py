"""Fashion-MNIST: 70 000 pictures of clothes, of 28 x 28 pixels."""

import functools
from pathlib import Path

import numpy as np

from consensus_optax import _check
from consensus_optax.tasks._idx import read_idx
from consensus_optax.tasks._pictures import Labelled, labelled_pictures
from consensus_optax.tasks._task import Task

NUM_CLASSES = 10
FOLDER = "/usr/share/datasets/fashion-mnist"  # where Debian's package puts it


def fashion_mnist(
    folder: str | Path = FOLDER,
    *,
    num_train: int | None = None,
    num_test: int | None = None,
    label_noise: float = 0.0,
    num_rows: int = 4,
    group_size: int = 16,
    seed: int = 0,
) -> Task:
    """Pictures of clothes in ten classes: as MNIST, but harder.

    Args:
      folder: of the four files ``train-images-idx3-ubyte.gz``,
        ``train-labels-idx1-ubyte.gz``, ``t10k-...``, as they are published; by default
        where Debian and Ubuntu put them.
      num_train: how many of the 60 000 for training, drawn by the seed; None: all.
      num_test: how many of the 10 000 for testing, likewise.
      label_noise: share of the training labels replaced by another class, in [0, 1].
        The test labels stay clean.
      num_rows: rows of one step.
      group_size: examples averaged into one row.
      seed: which are drawn, and which labels are wrong.

    Returns:
      A task with one problem, pixels in [0, 1].

    Raises:
      FileNotFoundError: a file is not there.
      ValueError: a file is of another kind, or an argument is out of range.

    References: Xiao et al., `Fashion-MNIST: a novel image dataset for benchmarking
    machine learning algorithms <https://arxiv.org/abs/1708.07747>`_, 2017.

    Examples:
      >>> fashion_mnist("no/such/folder")
      Traceback (most recent call last):
      FileNotFoundError: no/such/folder has no train-images-idx3-ubyte.gz: ...
    """
    draws = np.random.default_rng(seed)
    parts = [
        _drawn(_load(Path(folder), part), name, number, draws)
        for part, name, number in (
            ("train", "num_train", num_train),
            ("t10k", "num_test", num_test),
        )
    ]
    return labelled_pictures(
        "fashion_mnist",
        *parts,
        num_classes=NUM_CLASSES,
        label_noise=label_noise,
        num_rows=num_rows,
        group_size=group_size,
        seed=seed,
    )


@functools.lru_cache(maxsize=2)
def _load(folder: Path, part: str) -> Labelled:
    """Bytes of one part, (N, 28, 28, 1) and (N,): the two are kept."""
    paths = [
        folder / f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")
    ]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(
                f"{folder} has no {path.name}: Fashion-MNIST is installed by `apt "
                "install dataset-fashion-mnist` on Debian and Ubuntu; elsewhere give "
                "the `folder` of its four .gz files"
            )
    pixels, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
    if len(pixels) != len(labels):
        raise ValueError(
            f"{paths[1].name} must have a label for each of the {len(pixels)} "
            f"pictures; got {len(labels)}"
        )
    return pixels[..., None], labels


def _drawn(
    whole: Labelled, name: str, number: int | None, draws: np.random.Generator
) -> Labelled:
    """So many of them in random order, pixels in [0, 1]."""
    pixels, labels = whole
    if number is not None:
        _check.count(name, number)
        if number > len(labels):
            _check.fail(name, f"at most {len(labels)}", number)
    chosen = draws.permutation(len(labels))[:number]
    return pixels[chosen] / np.float32(255), labels[chosen].astype(np.int32)
