"""Nothing that decides leaves to an accelerator how many digits its products have.

By default a GPU rounds operands of float32 to 10 bits and a TPU to 8: a distance would
be noise. What a model multiplies is its own affair; here its products are exact.
"""

import jax
import optax
import pytest
from jax.extend.core import jaxprs_in_params

import consensus_optax as co
from tests import _agreement
from tests.zoo import ASKING, KINDS, ZOO

STEPS = {
    "clipped": lambda: co.clip_examples(1.0),
    "normalized": co.normalize_examples,
    "adaptively clipped": lambda: co.adaptive_clipping(1),
    "mixed": lambda: co.nearest_neighbor_mixing(1),
    "in buckets": lambda: co.bucketing(2, key=jax.random.key(0)),
}
SOURCES = ("arrays", "factored", "microbatches", "backward", "mesh")


def equations(jaxpr):
    """All of them, inner ones too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def unsaid(step, *given):
    """Where a program multiplies without saying how precisely."""
    return [
        str(equation.source_info.name_stack or equation)
        for equation in equations(jax.make_jaxpr(step)(*given).jaxpr)
        if equation.primitive.name == "dot_general"
        and equation.params["precision"] is None
    ]


def step_of(rule, source):
    """(parameters, batch) to an update."""
    loss = _agreement.loss
    if source in ("microbatches", "backward"):
        ways = {
            "microbatches": {"microbatch_size": 4},
            "backward": {"hold_rows": False},
        }
        run = co.value_and_reduced_grad(loss, rule, **ways[source])
        return lambda params, batch: run(params, batch, state=rule.init(params))[1]
    if source == "mesh":
        auto = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((2,), ("data",), axis_types=auto)
        rule = co.sharded(rule, "data", mesh=mesh)

    def step(params, batch):
        rows = co.per_example_grad(loss)(params, batch)
        rows = co.materialize(rows) if source == "arrays" else rows
        return rule.update(rows, rule.init(params), params)[0]

    return step


def check(rule, source):
    given = _agreement.model(), _agreement.batches()["plain"]
    assert not unsaid(step_of(rule, source), *given)


def test_the_model_itself_says_it_and_a_product_that_does_not_is_seen():
    given = _agreement.model(), _agreement.batches()["plain"]
    assert not unsaid(jax.grad(_agreement.loss), *given)
    assert unsaid(lambda params, _: params["inner"].T @ params["inner"], *given)


@pytest.mark.parametrize("source", ["arrays", "factored"])
@pytest.mark.parametrize("row", ASKING, ids=str)
def test_rules_say_how_precisely_they_multiply(row, source):
    check(row.make(_agreement.B), source)


@pytest.mark.slow
def test_every_rule_does_so():
    for row in ZOO:
        check(row.make(_agreement.B), "arrays")


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES[1:])
def test_every_source_does_so(source):
    for row in KINDS:
        check(row.make(_agreement.B), source)


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", STEPS)
def test_steps_ahead_of_rules_do_so_too(name, source):
    for rule in (co.median(), co.geometric_median()):
        check(co.chain(STEPS[name](), rule), source)


def test_transformations_of_updates_do_so_too():
    key = jax.random.key(0)
    tx = optax.chain(co.ema_agreement(), co.magma(optax.sgd(1.0), key))
    step = lambda params: tx.update(params, tx.init(params), params)
    assert not unsaid(step, _agreement.model())
