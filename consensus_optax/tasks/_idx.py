"""The idx format of MNIST and its relatives: a head, then bytes."""

import gzip
import math
from pathlib import Path

import numpy as np

_BYTES = 0x08  # the head's mark of unsigned bytes


def read_idx(path: Path, num_axes: int) -> np.ndarray:
    """The array of a compressed idx file of unsigned bytes.

    The head has four bytes, 0, 0, the kind of number and that of axes, and the length
    of each axis in four bytes, the highest first.

    Args:
      path: a ``.gz`` file.
      num_axes: how many axes the array must have.

    Returns:
      The array, uint8.

    Raises:
      ValueError: the file is of another kind, or has too few or too many bytes.
    """
    content = gzip.decompress(path.read_bytes())
    wanted, start = bytes([0, 0, _BYTES, num_axes]), 4 + 4 * num_axes
    if content[:4] != wanted:
        raise ValueError(
            f"{path.name} must be an idx file of bytes with {num_axes} axes, that is "
            f"begin with {wanted.hex()}; got {content[:4].hex() or 'nothing'}"
        )
    ends = range(8, start + 1, 4)
    shape = tuple(int.from_bytes(content[end - 4 : end], "big") for end in ends)
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"{path.name} must have as many bytes as its head says, shape {shape}; got "
            f"{max(len(content) - start, 0)} after the head"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
