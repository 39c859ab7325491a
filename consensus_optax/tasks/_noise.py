"""Label noise with a known truth."""

import numpy as np


def flip_labels(
    labels: np.ndarray, share: float, *, num_classes: int, seed: int = 0
) -> np.ndarray:
    """Replaces a share of the labels by another class, drawn uniformly.

    Args:
      labels: integers in ``[0, num_classes)``, of shape ``(N,)``.
      share: which part of the labels to replace, in [0, 1]; exactly
        ``round(share * N)`` of them change, and each of these really changes.
      num_classes: how many classes there are; at least 2.
      seed: which labels change and to what.

    Returns:
      The noisy labels, a new array.

    Raises:
      ValueError: an argument is out of range, or no class.

    Examples:
      >>> clean = np.zeros(10, int)
      >>> noisy = flip_labels(clean, 0.4, num_classes=3)
      >>> int((noisy != clean).sum()), bool((noisy < 3).all())
      (4, True)
    """
    labels = np.asarray(labels)
    whole = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
    if not whole or (labels < 0).any() or (labels >= num_classes).any():
        raise ValueError(
            f"`labels` must be integers in [0, num_classes), {num_classes=}, of shape "
            f"(N,); got {labels.dtype} of shape {labels.shape}"
            + (f" in [{labels.min()}, {labels.max()}]" if labels.size else "")
        )
    if not 0 <= share <= 1:
        raise ValueError(f"`share` must be in [0, 1]; got {share}")
    if num_classes < 2:
        raise ValueError(f"`num_classes` must be at least 2; got {num_classes}")
    rng = np.random.default_rng(seed)
    changed = rng.permutation(len(labels))[: round(share * len(labels))]
    noisy = np.array(labels)
    noisy[changed] += rng.integers(1, num_classes, len(changed), dtype=noisy.dtype)
    return noisy % num_classes
