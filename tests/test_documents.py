"""The pictures show every rule; the citation says what version it is."""

import importlib.util
from pathlib import Path

import pytest

import consensus_optax as co
from consensus_optax import _registry

ROOT = Path(__file__).parents[1]


def test_every_rule_is_in_a_picture():
    spec = importlib.util.spec_from_file_location("arrows", ROOT / "docs/arrows.py")
    arrows = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(arrows)
    drawn = {
        repr(rule).partition("(")[0]
        for _, rules in arrows.PICTURES.values()
        for rule in rules.values()
    }
    needing = {name.partition("(")[0] for name in _registry.needing_arguments()}
    known = {*_registry.factories(), *needing}
    assert known <= drawn | arrows.NOT_DRAWN
    for family in arrows.PICTURES:
        size = (ROOT / "docs" / "pictures" / f"{family}.png").stat().st_size
        assert 0 < size < 100_000


@pytest.mark.parametrize("page", ["README.md", "docs/rules.md"])
def test_every_rule_is_on_the_page(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    needing = {name.partition("(")[0] for name in _registry.needing_arguments()}
    for name in {*_registry.factories(), *needing}:
        assert f"`{name}" in text or f".{name}(" in text, name


def test_citation_has_this_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {co.__version__}\n" in text
