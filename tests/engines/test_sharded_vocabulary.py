"""Tables cut along their lines, and output layers tied to them.

As Megatron cuts them, as MaxText's "vocab" does, and as FSDP does along a first axis:
rows stay look-ups, the answer is one device's, and a plain step sends no less.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from benchmarks._traffic import bytes_in_turns
from consensus_optax.engines.mesh.entering import entering

LINES, WIDTH, LENGTH, ROWS = 512, 32, 4, 8
KINDS = {
    "fold": co.sign_consensus(),
    "gramian": co.cosine_filter(1.0),
    "columns": co.median(),
}
NUMBERS = np.random.default_rng(0)
PARAMS = {
    name: jnp.asarray(NUMBERS.normal(size=shape) / 4, jnp.float32)
    for name, shape in {
        "table": (LINES, WIDTH),
        "layer": (WIDTH, WIDTH),
        "readout": (WIDTH, LINES),
    }.items()
}
TOKENS = jnp.asarray(NUMBERS.integers(0, LINES, (ROWS, LENGTH + 1)), jnp.int32)
# Of each parameter, how it is cut.
CUTS = {
    "lines": {"table": P("model"), "layer": P(), "readout": P(None, "model")},
    "first axis": {"table": P("data"), "layer": P("data"), "readout": P("data")},
    "lines twice": {
        "table": P(("model", "data")),
        "layer": P("data"),
        "readout": P(None, ("model", "data")),
    },
    "both axes": {
        "table": P("model", "data"),
        "layer": P("data"),
        "readout": P("data", "model"),
    },
}


def params_of(tied):
    return {name: x for name, x in PARAMS.items() if not (tied and name == "readout")}


def loss_of(place=None):
    """Of params and tokens, tied if there is no readout; ``place`` of activations."""

    def loss(p, tokens):
        given, wanted = tokens[:, :-1], tokens[:, 1:]
        x = p["table"].at[given].get(out_sharding=place)
        x = x + jnp.tanh(x @ p["layer"])
        logits = x @ (p["readout"] if "readout" in p else p["table"].T)
        if place is not None:
            logits = jax.sharding.reshard(logits, place)
        own = jnp.take_along_axis(logits, wanted[..., None], -1)[..., 0]
        return (jax.nn.logsumexp(logits, -1) - own).mean()

    return loss


def megatron(checked):
    """The same of one device's lines: it masks, and sums over the others."""
    total = functools.partial(lax.psum, axis_name="model")
    # without types a sum's transpose has to be told, as Megatron's f and g
    enter = jax.custom_vjp(lambda x: x)
    enter.defvjp(lambda x: (x, None), lambda _, ct: (total(ct),))
    leave = jax.custom_vjp(total)
    leave.defvjp(lambda x: (total(x), None), lambda _, ct: (ct,))
    enter, leave = (lambda x: x, total) if checked else (enter, leave)

    def loss(p, tokens):
        count = p["table"].shape[0]

        def own(tokens):
            place = tokens - lax.axis_index("model") * count
            there = (place >= 0) & (place < count)
            return jnp.where(there, place, 0), there

        place, there = own(tokens[:, :-1])
        x = leave(jnp.where(there[..., None], p["table"][place], 0))
        x = enter(x + jnp.tanh(x @ p["layer"]))
        logits = x @ (p["readout"] if "readout" in p else p["table"].T)
        top = lax.pmax(lax.stop_gradient(logits.max(-1)), "model")
        sums = leave(jnp.exp(logits - top[..., None]).sum(-1))
        place, there = own(tokens[:, 1:])
        picked = jnp.take_along_axis(logits, place[..., None], -1)[..., 0]
        return (jnp.log(sums) + top - leave(jnp.where(there, picked, 0))).mean()

    return loss


def mesh_of(kind=AxisType.Auto):
    return jax.make_mesh(
        (2, 2), ("data", "model"), (kind,) * 2, devices=jax.devices()[:4]
    )


@functools.cache
def rows_of_one_device(tied):
    """As arrays."""
    one = lambda tokens: jax.grad(loss_of())(params_of(tied), tokens[None])
    return jax.jit(jax.vmap(one))(TOKENS)


@functools.cache
def wanted(tied, kind):
    """The update that these make, and by how much another order of sums may be off.

    Sums of up to 512 terms, whose roundings add up as the root of their number does.
    """
    rows, params = rows_of_one_device(tied), params_of(tied)
    off = {name: 512**0.5 * 2.0**-23 * np.abs(x).max() for name, x in rows.items()}
    return KINDS[kind].update(rows, KINDS[kind].init(params), params)[0], off


def stepper(step, params, kinds):
    """Updates of several kinds, of one program."""

    def updates(params, tokens):
        return {
            kind: step(KINDS[kind])(params, tokens, state=KINDS[kind].init(params))[1]
            for kind in kinds
        }

    return updates


def check(program, params, tokens, kinds, tied):
    for kind, update in program(params, tokens).items():
        expected, off = wanted(tied, kind)
        for name, leaf in expected.items():
            close = functools.partial(np.testing.assert_allclose, err_msg=kind)
            close(update[name], leaf, rtol=0, atol=off[name])


def factored(loss, params, tokens):
    rows = jax.eval_shape(co.per_example_grad(loss), params, tokens)
    return {name for name, leaf in rows.items() if co.is_outer_product(leaf)}


# How many times the plain step's bytes a step of each may send. A device has four
# rows: held, factors travel; of others rows themselves where these are compared, and
# with a second pass for what looks at them before it combines them.
MOST = {"held": 0.9, "not held": 1.2}
# The plain step of a tied table whose lines the rows' own axis cuts moves the few
# tokens' activations in its place; rows, each on its own device, have to gather it. So
# it is of lines that two axes cut where rows are dealt out in the backward pass (1.85).
OF_FEW_TOKENS = 2.3
PLACES = [
    pytest.param(tied, cut, kind, marks=() if now else pytest.mark.whole_zoo)
    for tied in (False, True)
    for cut in CUTS
    for kind in (AxisType.Auto, AxisType.Explicit)
    if cut != "lines twice" or kind is AxisType.Auto  # JAX asks where logits are
    for now in [(tied, cut) in ((False, "lines"), (True, "both axes"))]
]


@pytest.mark.slow
@pytest.mark.parametrize(("tied", "cut", "axes"), PLACES)
def test_under_jit(tied, cut, axes):
    mesh, params = mesh_of(axes), params_of(tied)
    specs = {name: CUTS[cut][name] for name in params}
    lie = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    params = jax.device_put(params, lie)
    tokens = jax.device_put(TOKENS, NamedSharding(mesh, P("data")))
    explicit = axes is AxisType.Explicit
    loss = loss_of(P() if explicit else None)
    ways = ("held",) if explicit else ("held", "not held")
    with jax.set_mesh(mesh):
        assert factored(loss, params, tokens) == set(params)
        for way in ways:
            kinds = ("fold", "gramian", "columns") if way == "held" else ("fold",)

            def step(reducer, way=way):
                face = co.sharded(reducer, "data", mesh=mesh, param_specs=specs)
                return co.value_and_reduced_grad(loss, face, hold_rows=way == "held")

            out = dict.fromkeys(kinds, lie)
            run = jax.jit(stepper(step, params, kinds), out_shardings=out)
            program = run.lower(params, tokens).compile()
            check(program, params, tokens, kinds, tied)
            if not explicit:
                plain = jax.jit(jax.value_and_grad(loss), out_shardings=(None, lie))
                text = plain.lower(params, tokens).compile().as_text()
                sent = bytes_in_turns(program.as_text(), 4)
                few = tied and cut in ("first axis", "lines twice")
                few |= cut == "lines twice" and way == "not held"
                most = OF_FEW_TOKENS if few else MOST[way]
                assert sent <= len(kinds) * most * bytes_in_turns(text, 4)


@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("checked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_inside_a_shard_map_whose_loss_masks_and_sums(tied, checked):
    mesh, params = mesh_of(), params_of(tied)
    specs = {name: CUTS["lines"][name] for name in params}
    loss, seen = megatron(checked), set()

    def step(reducer):
        face = co.sharded(reducer, "data", param_specs=specs)

        def run(params, tokens, state):
            seen.update(factored(loss, params, tokens))
            return co.value_and_reduced_grad(loss, face)(params, tokens, state=state)

        return run

    kinds = ("columns",) if checked else ("fold", "gramian", "columns")
    run = jax.shard_map(
        stepper(step, params, kinds),
        mesh=mesh,
        in_specs=(specs, P("data")),
        out_specs=dict.fromkeys(kinds, specs),
        check_vma=checked,
    )
    lie = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    given = (
        jax.device_put(params, lie),
        jax.device_put(TOKENS, NamedSharding(mesh, P("data"))),
    )
    program = jax.jit(run).lower(*given).compile()
    assert seen == set(params)
    check(program, *given, kinds, tied)


@pytest.mark.parametrize("spec", [P("model"), P(None, "model"), P("model", "other")])
def test_a_look_up_enters_as_one(spec):
    """All indices and as many columns as a device has, whatever cuts the table."""
    mesh = jax.sharding.AbstractMesh((2, 2, 2), ("data", "model", "other"))
    rows = co.OuterProduct(
        jnp.zeros((ROWS, LENGTH), jnp.int32),
        jnp.zeros((ROWS, LENGTH, WIDTH)),
        (LINES, WIDTH),
    )
    spec = P(*spec, *[None] * (2 - len(spec)))
    found = entering(rows, ("data",), spec, mesh)
    assert found.part.is_look_up
    assert found.specs == (P("data", None), P("data", None, spec[1]))
    cut = [
        side // (1 + (name is not None))
        for side, name in zip((LINES, WIDTH), spec, strict=True)
    ]
    assert found.part.row_shape == tuple(cut)
