"""Contestants of one program are those of programs of their own."""

import numpy as np
import pytest

import consensus_optax as co
from consensus_optax import comparison, tasks
from consensus_optax.comparison import Contestant, _federate

pytest.importorskip("sklearn", reason='needs pip install "consensus_optax[demo]"')
pytestmark = pytest.mark.slow


def test_attacks_on_one_server_share_a_program(monkeypatch):
    task = comparison.digits_clients(lambda y: tasks.even_split(len(y), 6))
    made, rule, calls = comparison.named_attacks(), co.mean(), []
    program = _federate._program

    def counted(*args, **options):
        calls.append(args)
        return program(*args, **options)

    monkeypatch.setattr(_federate, "_program", counted)
    options = {"rounds": 2, "seeds": 1, "num_sampled": 4, "num_byzantine": 1}
    names = "none", "label_flip", "ipm", "silence"
    several = {name: Contestant(rule, made[name]()) for name in names}
    together = comparison.federate(task, several, **options)
    assert len(calls) == 1
    for name in names:
        alone = comparison.federate(task, {name: several[name]}, **options)
        one, other = together.curves[name], alone.curves[name]
        # the same sums, which another program may make in another order
        np.testing.assert_allclose(one["test_loss"], other["test_loss"], rtol=1e-5)
    assert len(calls) == 1 + len(names)
    again = {"one": Contestant(rule), "other": Contestant(rule, error_feedback=True)}
    again |= {"coded": Contestant(rule, compressor=co.compressors.scaled_sign())}
    comparison.federate(task, again, **{**options, "rounds": 1})
    assert len(calls) == 1 + len(names) + 3
