"""Two drawings; matplotlib is imported when one is asked for (extra ``demo``)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from consensus_optax._rows.trees import leaf_name
from consensus_optax._typing import Array, Tree
from consensus_optax.diagnostics._gramian import checked_gramian
from consensus_optax.weightings._pairs import cosines


def plot_gramian(gramian: Array, ax: Any = None, labels: Any = None) -> Any:
    """Draws the cosines of all pairs of rows: red agrees, blue conflicts.

    Args:
      gramian: (B, B), from :func:`gramian`.
      ax: matplotlib axes; None makes new ones.
      labels: names of the rows, such as their classes; None gives indices.

    Returns:
      The axes.

    Examples:
      >>> import jax.numpy as jnp, matplotlib
      >>> matplotlib.use("agg")
      >>> plot_gramian(jnp.eye(3)).get_title()
      'cosines of rows'
    """
    ax = _axes(ax)
    cosine, _ = cosines(checked_gramian(gramian))
    image = ax.imshow(np.asarray(cosine), cmap="RdBu_r", vmin=-1, vmax=1)
    ax.figure.colorbar(image, ax=ax)
    ax.set(title="cosines of rows", xlabel="row", ylabel="row")
    if labels is not None:
        ax.set_xticks(range(len(labels)), labels, rotation=90)
        ax.set_yticks(range(len(labels)), labels)
    return ax


def plot_agreement(agreement: Tree, ax: Any = None) -> Any:
    """Draws one number for each parameter, as :func:`leaf_agreement` gives them.

    Args:
      agreement: tree of numbers.
      ax: matplotlib axes; None makes new ones.

    Returns:
      The axes.

    Examples:
      >>> import matplotlib
      >>> matplotlib.use("agg")
      >>> ax = plot_agreement({"kernel": 1.5, "bias": 0.2})
      >>> [label.get_text() for label in ax.get_yticklabels()]
      ["['bias']", "['kernel']"]
    """
    ax = _axes(ax)
    flat, _ = jax.tree_util.tree_flatten_with_path(agreement)
    for path, number in flat:
        if jnp.ndim(number) or not jnp.isscalar(number):
            raise ValueError(
                "`agreement` must be a tree of numbers, as `leaf_agreement(rows)` "
                f"gives them; {leaf_name(path)} is none."
            )
    names = [jax.tree_util.keystr(path) or "(root)" for path, _ in flat]
    ax.barh(range(len(names)), [float(number) for _, number in flat])
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set(xlabel="agreement of rows")
    return ax


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots()[1]
