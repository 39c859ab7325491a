"""Contestants of one program are those of programs of their own."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from consensus_optax import comparison, tasks
from consensus_optax.comparison import Contestant, _federate

pytest.importorskip("sklearn", reason='needs pip install "consensus_optax[demo]"')
pytestmark = pytest.mark.slow


OPTIONS = {"rounds": 1, "seeds": 1, "num_sampled": 4, "num_byzantine": 1}


@pytest.fixture(name="task", scope="module")
def _task():
    return comparison.picture_clients(
        tasks.digits(), lambda y: tasks.even_split(len(y), 6)
    )


def test_attacks_on_one_server_share_a_program(task):
    made, rule = comparison.named_attacks(), co.mean()
    names = "none", "label_flip", "ipm", "silence"
    several = {name: Contestant(rule, made[name]()) for name in names}
    together = comparison.federate(task, several, **OPTIONS)
    for name in ("label_flip", "ipm"):
        alone = comparison.federate(task, {name: several[name]}, **OPTIONS)
        one, other = together.curves[name], alone.curves[name]
        # the same sums, which another program may make in another order
        np.testing.assert_allclose(one["test_loss"], other["test_loss"], rtol=1e-5)


def test_a_program_for_every_server(task, monkeypatch):
    calls = []

    def program(_, contestant, faced, **options):
        calls.append((contestant.compressor, contestant.error_feedback, len(faced)))
        run = lambda fit, length, seeds, which: (fit, np.zeros(seeds.shape))
        return optax.sgd(1.0), run

    monkeypatch.setattr(_federate, "_program", program)
    code, made = co.compressors.scaled_sign(), comparison.named_attacks()
    rule, none, ipm = co.mean(), made["none"](), made["ipm"]()
    several = {
        "plain": Contestant(rule, none),
        "attacked": Contestant(rule, ipm),
        "coded": Contestant(rule, none, code),
        "fed back": Contestant(rule, none, code, True),
        "coded, attacked": Contestant(rule, ipm, code),
    }
    comparison.federate(task, several, **OPTIONS)
    assert calls == [(None, False, 2), (code, False, 2), (code, True, 1)]


def test_attackers_are_clients_with_data():
    """Those without any come last where all are drawn, and do not count."""
    task = comparison.picture_clients(
        tasks.digits(), lambda y: tasks.even_split(len(y), 6)
    )
    counts = jnp.asarray(task.counts).at[jnp.array([0, 2])].set(0)
    task = task._replace(counts=counts)
    made = comparison.named_attacks()
    several = {name: Contestant(co.mean(), made[name]()) for name in ("none", "ipm")}
    options = {**OPTIONS, "rounds": 2, "num_sampled": 5, "num_byzantine": 2}
    found = comparison.federate(task, several, **options).curves
    losses = [found[name]["test_loss"] for name in several]
    assert not np.allclose(*losses, rtol=1e-3)
