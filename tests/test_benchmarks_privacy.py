"""The benchmark of private gradients at tiny sizes: who is compared, what is told."""

import jax
import pytest

from benchmarks import _harness, _private_digits, _workloads, privacy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.standard_promotion,
    # of jax_privacy, where it is installed
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _as_users_do():
    with jax.numpy_rank_promotion("allow"):
        yield


def test_every_private_step_gives_a_gradient():
    work = _workloads.workload("mlp", smoke=True)
    names = []
    for name, _, step in privacy.steps(work):
        update = jax.eval_shape(step, work.params, work.batch)[0]
        assert jax.tree.structure(update) == jax.tree.structure(work.params), name
        names.append(name)
    assert "private_sum [lazy]" in names
    assert "optax.contrib" in names


def test_private_training_learns_the_digits():
    """To 80 % where 10 % is chance, in a third of the steps."""
    setting = _private_digits.Setting()
    sampling = setting.sampling._replace(num_steps=60)
    setting = setting._replace(sampling=sampling, seeds=1)
    for name in ("private_sum", "private_sum, quantile_norm"):
        make = _private_digits.CONTESTANTS[name]
        assert _private_digits.accuracies(make, setting, 1.5)[0] > 0.8, name


def test_smoke_run_writes_rows_and_a_table_and_leaves_others(tmp_path):
    common = {"contestant": "private_sum", "mean": 0.5, "standard_error": 0.01}
    digits = [{"workload": "digits", "commit": "before", **common}]
    _harness.write("privacy", digits, {}, tmp_path)
    privacy.main(["--smoke", "--out", str(tmp_path), "--workload", "mlp"])
    rows = _harness.read("privacy", tmp_path)
    assert rows[-1:] == digits
    assert all(row["ratio"] > 0 for row in rows[:-1])
    assert rows[0]["commit"] != "before"
    text = (tmp_path / "privacy.md").read_text(encoding="utf-8")
    assert "| private_sum | ×" in text
    assert "| 50.0 ± 1.0 |" in text
