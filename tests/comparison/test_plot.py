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
        assert labels[:2] == ["mean", "sign_consensus"]
    comparison.save_plot(result(), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_plain_adam_is_drawn_if_alone():
    alone = result()._replace(curves={"adam": result().curves["adam"]})
    assert comparison.plot(alone).axes[0].lines[0].get_label() == "adam"


def test_many_rules_share_a_legend_below_and_no_style(tmp_path):
    one = result().curves["mean"]
    many = result()._replace(curves={f"rule {i}": one for i in range(26)})
    figure = comparison.plot(many)
    comparison.save_plot(many, tmp_path / "curves.png")  # a warning is an error
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 27  # and the trivial answer
    lines = figure.axes[0].lines
    styles = {(line.get_color(), line.get_linestyle()) for line in lines}
    assert len(styles) == len(lines) == 26
