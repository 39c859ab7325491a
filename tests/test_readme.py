"""The documents' Python runs as a reader would run it, and their names exist."""

import re
from pathlib import Path

import jax
import pytest

import consensus_optax as co
from consensus_optax import _registry, attacks, comparison, tasks, training

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
WITH_PYTHON = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]
NAME = re.compile(r"\b(co(?:\.[A-Za-z_]\w*)+)")
# Modules that a page names by themselves, as it imports them.
ROOMS = {"training": training, "tasks": tasks}
ROOMS |= {"comparison": comparison, "attacks": attacks}


def path_id(path):
    return str(path.relative_to(ROOT))


@pytest.mark.slow  # `make doctest` has it
@pytest.mark.parametrize("page", WITH_PYTHON, ids=path_id)
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    """Block after block, one session for a page."""
    text = page.read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python"), "a block is not closed or indented"
    monkeypatch.chdir(tmp_path)  # what a block writes does not land in the repository
    namespace = {"__name__": "__main__"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            lines_above = text.count("\n", 0, block.start(1))
            code = compile("\n" * lines_above + block[1], str(page), "exec")
            exec(code, namespace)


def test_documents_show_python():
    assert ROOT / "README.md" in WITH_PYTHON


@pytest.mark.parametrize("page", PAGES, ids=path_id)
def test_names_exist(page):
    """Whatever a page calls `co.something`, also in tables of others' names."""
    text = page.read_text(encoding="utf-8")
    names = set(NAME.findall(text))
    pattern = rf"`({'|'.join(ROOMS)})\.([A-Za-z_]\w*)"
    named = set(re.findall(pattern, text))
    for name in names:
        found = co
        for part in name.split(".")[1:]:
            if found is co and part in ROOMS:
                found = ROOMS[part]
                continue
            if found is co and not hasattr(co, part):  # `co.GAF`, that names ours
                called = _registry._plain(part) in _registry._names_and_synonyms()
                assert called, f"{name} does not exist"
                break
            assert hasattr(found, part), f"{name} does not exist"
            found = getattr(found, part)
    for room, name in named:
        assert hasattr(ROOMS[room], name), f"{room}.{name} does not exist"


def test_migrating_has_a_name_of_ours_in_every_row():
    text = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    for row in rows:
        _, theirs, ours, *_ = row.split("|")
        assert theirs.strip()
        assert NAME.search(ours) or "`training." in ours or "attacks." in ours, row


def test_readme_can_be_read_in_one_go():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200


def test_pages_name_no_place_on_a_disk():
    for page in [*PAGES, *sorted((ROOT / "docs").rglob("*.py"))]:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"(file://|/(work|home|tmp)/)", text), path_id(page)


@pytest.mark.parametrize("page", PAGES, ids=path_id)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s#]+)", text):
        if not link.startswith("http"):
            made_when_built = link == "gallery.md"
            assert made_when_built or (page.parent / link).exists(), link
