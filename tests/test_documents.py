"""The pictures show every rule; the citation says what version it is."""

import importlib.util
import re
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


PAGES = sorted(ROOT.glob("docs/*.md"))
TABLES = {"several_losses": ["tasks"], "privacy": ["privacy"], "speed": ["uses", "gpu"]}
TABLES |= {"natural_gradient": ["gauss_newton"], "compression": ["compression"]}
TABLES |= {"robust": ["federated", "breakdown", "unlike_and_late"]}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_on_a_page_are_there_and_made_by_a_script(page):
    """What several losses, privacy, ... cost is told on the page of each."""
    text = page.read_text(encoding="utf-8")
    shown = re.findall(r"^```\{include\} (\S*results/\S+)$", text, re.MULTILINE)
    for path in shown:
        table = (page.parent / path).read_text(encoding="utf-8")
        assert len(table.splitlines()) > 2, path
    for name in TABLES.get(page.stem, ()):
        assert f"../benchmarks/results/{name}.md" in shown
        assert (ROOT / "benchmarks" / f"{name}.py").exists()


def test_citation_has_this_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {co.__version__}\n" in text
