"""The README's Python runs as a reader would run it: block after block, one session."""

import re
from pathlib import Path

import jax
import pytest

pytestmark = pytest.mark.slow  # `make doctest` has it

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_python_blocks_run_in_order(tmp_path, monkeypatch):
    text = README.read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python"), "a block is not closed or indented"
    assert blocks, "README.md shows no Python"
    monkeypatch.chdir(tmp_path)  # what a block writes does not land in the repository
    namespace = {"__name__": "__main__"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            lines_above = text.count("\n", 0, block.start(1))
            code = compile("\n" * lines_above + block[1], str(README), "exec")
            exec(code, namespace)
