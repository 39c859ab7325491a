"""What every rule does to a few arrows: draws ``docs/pictures/``.

    python docs/arrows.py

Grey: the rows. Dashed: their mean. Blue: the update, a cross where it is zero.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import consensus_optax as co

KEY = jax.random.key(0)
THREE = np.array([[1.0, 0.25], [0.75, 0.8], [-0.35, 0.9]])
OPPOSED = np.array([[1.2, 0.3], [0.35, 1.0], [-0.9, 0.15]])
LIARS = np.array(
    [
        [0.8, 0.5],
        [0.9, 0.7],
        [0.6, 0.9],
        [0.7, 0.6],
        [1.0, 0.5],
        [0.6, 0.7],
        [-1.4, 0.3],
    ]
)

# A picture for each family: the rows, and what is drawn of them.
PICTURES: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "agreement": (
        THREE,
        {
            "mean": co.mean(),
            "normalized_mean": co.normalized_mean(),
            "sign_consensus": co.sign_consensus(),
            "sign_consensus(quorum=0.6)": co.sign_consensus(quorum=0.6),
            "sign_vote": co.sign_vote(),
            "sand_mask": co.sand_mask(),
            "graddrop": co.graddrop(0.0, KEY),
            "signal_to_noise": co.signal_to_noise(),
            "subspace_weighting": co.subspace_weighting(),
            "adasum": co.adasum(),
        },
    ),
    "selection": (
        THREE,
        {
            "cosine_filter(0.5)": co.cosine_filter(0.5),
            "neighbor_filter(0.3)": co.neighbor_filter(0.3),
            "l2_filter(0.5)": co.l2_filter(0.5),
            "sign_filter(0.5)": co.sign_filter(0.5),
            "cluster_mean": co.cluster_mean(),
            "select_toward": co.select_toward(),
            "previous_update_filter": co.previous_update_filter(),
            "keep_smallest_losses(1)": co.keep_smallest_losses(1),
            "clipped_sum(0.5)": co.clipped_sum(0.5, divisor=3),
            "private_sum": co.private_sum(
                0.5, divisor=3, noise_multiplier=0.5, key=KEY
            ),
        },
    ),
    "several_losses": (
        OPPOSED,
        {
            "mgda": co.mgda(),
            "upgrad": co.upgrad(),
            "dual_projection": co.dual_projection(),
            "cagrad(c=1)": co.cagrad(1.0),
            "pcgrad": co.pcgrad(KEY),
            "grad_vac": co.grad_vac(KEY, 3),
            "imtl_g": co.imtl_g(),
            "aligned_mtl": co.aligned_mtl(),
            "nash_mtl": co.nash_mtl(),
            "conflict_free": co.conflict_free(),
            "fairgrad": co.fairgrad(),
            "pcd": co.pcd(3),
            "constant": co.constant((3.0, 1.0, 1.0)),
            "random_weights": co.random_weights(KEY),
            "ema_weights(mgda)": co.ema_weights(co.mgda(), 3),
            "moco": co.moco(3),
            "q_fedavg(1)": co.q_fedavg(1.0, 1.0),
        },
    ),
    "robust": (
        LIARS,
        {
            "mean": co.mean(),
            "median": co.median(),
            "trimmed_mean(1)": co.trimmed_mean(1),
            "winsorized_mean(0.2)": co.winsorized_mean(0.2),
            "mean_around_median(1)": co.mean_around_median(1),
            "krum(1)": co.krum(1),
            "bulyan(1)": co.bulyan(1),
            "geometric_median": co.geometric_median(),
            "centered_clipping(0.5)": co.centered_clipping(0.5),
            "minimum_diameter(1)": co.minimum_diameter(1),
            "smea(1)": co.smea(1),
            "caf(1)": co.caf(1),
            "comparative_elimination(1)": co.comparative_elimination(1),
            "divide_and_conquer(1)": co.divide_and_conquer(1),
            "trusted_row": co.trusted_row(),
            "monna(1)": co.monna(1),
        },
    ),
}
# Rules that read more than rows: a second batch, a Hessian, residuals, their own past.
NOT_DRAWN = {
    "scale_by_example_moments",
    "among",
    "after",
    "per_leaf",
    "modo",
    "sdmgrad",
    "trust_region_weighting",
    "gauss_newton",
}
EXTRA = {
    "select_toward": {"target": jnp.array([0.0, 1.0])},
    "q_fedavg(1)": {"values": jnp.array([1.0, 0.5, 2.0])},
    "keep_smallest_losses(1)": {"values": jnp.array([1.0, 0.5, 2.0])},
}


def update_of(name: str, rule: Any, rows: np.ndarray) -> np.ndarray:
    """The update that a rule makes of some rows, as a new optimizer sees them."""
    params = jnp.zeros(2)
    given, extra = jnp.asarray(rows, jnp.float32), EXTRA.get(name, {})
    state = rule.init(params)
    if "previous" in name or "centered" in name:  # it remembers the last update
        _, state = rule.update(given, state, params)
    return np.asarray(rule.update(given, state, params, **extra)[0])


def draw(family: str) -> Figure:
    """One picture: a panel for each rule of a family."""
    rows, rules = PICTURES[family]
    across = min((4, 5, 6), key=lambda number: -len(rules) % number)
    down = -(-len(rules) // across)
    margin = 0.2 * np.abs(rows).max()
    lowest = np.minimum(rows.min(0), 0) - margin
    highest = np.maximum(rows.max(0), 0) + margin
    width, height = highest - lowest
    figure = Figure(
        figsize=(1.75 * across, (1.6 * height / width + 0.3) * down),
        layout="constrained",
    )
    panels = figure.subplots(down, across, squeeze=False).flat
    for axes in panels[len(rules) :]:
        axes.set_axis_off()
    for axes, (name, rule) in zip(panels, rules.items(), strict=False):
        axes.axhline(0, color="0.9", linewidth=0.8, zorder=0)
        axes.axvline(0, color="0.9", linewidth=0.8, zorder=0)
        for row in rows:
            _arrow(axes, row, color="0.6", width=0.013)
        mean = rows.mean(0)
        axes.plot([0, mean[0]], [0, mean[1]], "--", color="black", linewidth=1)
        update = update_of(name, rule, rows)
        if update.any():  # a longer one ends at the frame
            room = np.where(update > 0, highest, lowest) / np.where(update, update, 1)
            shown = update * min(1, *room[update != 0])
            _arrow(axes, shown, color="#1f77b4", width=0.026)
        else:
            axes.plot(0, 0, "x", color="#1f77b4", markersize=8, markeredgewidth=2.5)
        axes.set(xlim=(lowest[0], highest[0]), ylim=(lowest[1], highest[1]))
        axes.set_aspect("equal")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("0.85")
        axes.set_title(name, fontsize=7, family="monospace")
    return figure


def _arrow(axes: Any, tip: np.ndarray, *, color: str, width: float) -> None:
    """From the origin."""
    axes.quiver(
        *([0], [0], [tip[0]], [tip[1]]),
        angles="xy",
        scale_units="xy",
        scale=1,
        color=color,
        width=width,
    )


def main() -> None:
    """Draws all of them."""
    folder = Path(__file__).parent / "pictures"
    for family in PICTURES:
        draw(family).savefig(folder / f"{family}.png", dpi=120)


if __name__ == "__main__":
    main()
