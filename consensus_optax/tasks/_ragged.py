"""Arrays of unequal length as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def side_by_side(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(len(parts), longest) of vectors, 0 after the end of each; and their lengths.

    The dtype is that of the first; lengths are int32.
    """
    counts = np.array([len(part) for part in parts], np.int32)
    padded = np.zeros((len(parts), counts.max()), parts[0].dtype)
    for row, part in zip(padded, parts, strict=True):
        row[: len(part)] = part
    return padded, counts
