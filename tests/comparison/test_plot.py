"""The picture shows every rule in every panel."""

import pytest

from consensus_optax import comparison
from tests.comparison.tiny import result

pytestmark = [pytest.mark.standard_promotion, pytest.mark.slow]  # for optax.adam


def test_every_rule_is_in_every_panel(tmp_path):
    figure = comparison.plot(result())
    assert len(figure.axes) == 3
    for axes in figure.axes:
        labels = [line.get_label() for line in axes.lines]
        assert labels[:3] == ["mean", "sign_consensus", "plain Adam, no rows"]
    (legend,) = figure.legends  # beside the panels, over no band
    figure.draw_without_rendering()
    right = max(axes.bbox.x1 for axes in figure.axes)
    assert legend.get_window_extent().x0 > right - 1
    assert "swap: 2 problems, 2 seeds, 4 steps of Adam at 0.003" in (
        figure.get_suptitle()
    )
    comparison.save_plot(result(), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_plain_adam_alone():
    alone = result()._replace(curves={"adam": result().curves["adam"]})
    (line,) = comparison.plot(alone).axes[0].lines
    assert line.get_label().startswith("plain Adam")


def test_many_rules_share_a_legend_below_and_no_style(tmp_path):
    one = result().curves["mean"]
    many = result()._replace(curves={f"rule {i}": one for i in range(26)})
    figure = comparison.plot(many)
    comparison.save_plot(many, tmp_path / "curves.png")  # a warning is an error
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 27  # and the trivial answer; Adam is not there
    lines = figure.axes[0].lines
    styles = {(line.get_color(), line.get_linestyle()) for line in lines}
    assert len(styles) == len(lines) == 26
