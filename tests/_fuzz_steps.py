"""One step of a random case: a rule, what is around it, where its rows come from."""

import contextlib

import jax
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import consensus_optax as co

# Rows as they are given; as `co.per_example_grad` gives them; computed by a step.
SOURCES = ("arrays", "factored", "held", "microbatches", "backward")
COMPUTED = {
    "held": lambda case: {"hold_rows": True},
    "microbatches": lambda case: {"microbatch_size": case.microbatch},
    "backward": lambda case: {"hold_rows": False},
}
# Where rows and parameters are: rows cut along the first of these axes; along which of
# them parameters are cut, and whether the mesh is set.
AXES = ("data", "model")
PLACES = {
    "one device": None,
    "auto": (AxisType.Auto, (), False),
    "auto, cut": (AxisType.Auto, AXES[:1], False),
    "auto, cut, set": (AxisType.Auto, AXES[:1], True),
    "auto, both cut": (AxisType.Auto, AXES, False),
    "explicit, set": (AxisType.Explicit, (), True),
    "explicit, cut": (AxisType.Explicit, AXES[:1], False),
    "explicit, cut, set": (AxisType.Explicit, AXES[:1], True),
}
DEVICES = 2
# Those that hand a reducer the whole tree, as parameters' specs are of it.
WHOLE = ("plain", "sgd", "guard", "skip", "inject", "multi_steps", "apply_if_finite")
WRAPPERS = (*WHOLE, "partition", "masked", "accumulate", "freeze")


def step(case, row, data):
    """(parameters, updates, metrics) of one step, or of two that are one."""
    reducer, params = row.make(case.num_rows), data.params()
    given = params, data.batch(), data.jax_weights()
    around = contextlib.nullcontext()
    if PLACES[case.place]:
        kind, cut, is_set = PLACES[case.place]
        devices = jax.devices()[: DEVICES**2]
        mesh = jax.make_mesh((DEVICES,) * 2, AXES, (kind,) * 2, devices=devices)
        reducer, given = _placed(mesh, cut, reducer, *given)
        around = jax.set_mesh(mesh) if is_set else around
    make = _computed if case.source in COMPUTED else _given
    with around:
        updates, metrics = jax.jit(make(case, reducer, data))(*given)
    return params, updates, metrics


def _placed(mesh, cut, reducer, params, batch, weights):
    """The rule on a mesh, and what it is given where it lies there."""
    specs = [_spec(leaf.shape, cut) for leaf in params]
    options = {"param_specs": specs} if cut else {}
    reducer = co.sharded(reducer, "data", mesh=mesh, **options)
    put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    params = [put(*each) for each in zip(params, specs, strict=True)]
    batch = jax.tree.map(lambda x: put(x, P("data")), batch)
    weights = None if weights is None else put(weights, P("data"))
    return reducer, (params, batch, weights)


def _spec(shape, names):
    """Each name cuts the first axis left that its devices can share."""
    left, entries = list(names), []
    for size in shape:
        fits = left and size and size % DEVICES == 0
        entries.append(left.pop(0) if fits else None)
    return P(*entries)


def _computed(case, reducer, data):
    how = COMPUTED[case.source](case)
    reduced = co.value_and_reduced_grad(data.loss, reducer, **how)

    def run(params, batch, weights):
        state = reducer.init(params)
        _, update, state = reduced(params, batch, state=state, weights=weights)
        return update, co.metrics(state)

    return run


def _given(case, reducer, data):
    tx = _wrapped(case, reducer, data.params())
    halves = 2 if case.wrapper == "accumulate" else 1
    size = case.num_rows // halves

    def run(params, batch, weights):
        state = tx.init(params)
        for i in range(halves):
            cut = lambda x, i=i: x[i * size : (i + 1) * size] if halves > 1 else x
            rows = data.rows(data.params(), jax.tree.map(cut, batch))
            own = None if weights is None else cut(weights)
            updates, state = tx.update(rows, state, params, weights=own)
        return updates, co.metrics(state)

    return run


def _wrapped(case, reducer, params):
    sgd = optax.sgd(1.0)
    match case.wrapper:
        case "sgd":
            return optax.chain(reducer, sgd)
        case "guard":
            return optax.chain(reducer, co.guard())
        case "skip":
            return optax.chain(reducer, co.skip_if_empty(sgd))
        case "partition":
            labels = jax.tree.map(lambda _: "all", params)
            return optax.partition({"all": reducer}, labels)
        case "masked":
            return optax.masked(reducer, jax.tree.map(lambda _: True, params))
        case "inject":
            scaled = lambda factor: optax.chain(reducer, optax.scale(factor))
            return optax.inject_hyperparams(scaled)(factor=1.0)
        case "multi_steps":
            wait = optax.MultiSteps(sgd, 1).gradient_transformation()
            return optax.chain(reducer, wait)
        case "apply_if_finite":
            return optax.chain(reducer, optax.apply_if_finite(sgd, 2))
        case "accumulate":
            return co.accumulate(reducer, 2)
        case "freeze":
            return co.freeze(reducer, [i == 0 for i in range(len(params))])
    return reducer
