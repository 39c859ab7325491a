"""The picture shows every rule in every panel."""

import pytest

from consensus_optax import comparison
from tests.comparison.tiny import result

pytestmark = pytest.mark.standard_promotion  # for optax.adam


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
