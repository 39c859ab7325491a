"""Rules, states and solvers keep to the shapes that they are annotated with.

Annotations are those of jaxtyping, which the package does not import: here its aliases
are what they say, and every annotated call is held to them while rules are traced.
"""

import functools
import inspect
import pkgutil
import sys
import types
import typing

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import AbstractArray, jaxtyped

import consensus_optax
from consensus_optax import _typing
from consensus_optax._rules.kinds import After, Among, Mixing, Roster, Weighting
from tests._stacks import B, params
from tests.engines.test_sources import given_rows
from tests.zoo import EVERY_FACTORY

CHECKED = ("consensus_optax._rules.distances", "consensus_optax._rules.solvers._")


def real_shapes():
    """The aliases of ``_typing`` as a type checker sees them."""
    source = inspect.getsource(_typing).replace("if TYPE_CHECKING:", "if True:")
    assert source != inspect.getsource(_typing)
    names = {}
    exec(source, names)
    return {k: v for k, v in names.items() if k in vars(_typing) and k[0].isupper()}


SHAPES = real_shapes()


@functools.cache
def hints_of(annotated):
    """Its annotations, with the real aliases."""
    own = vars(sys.modules[annotated.__module__])
    return typing.get_type_hints(annotated, {**own, **SHAPES})


def wrong(value, hint, name):
    """What does not have the shape that a hint says, sizes being bound as they come."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        found = [list(wrong(value, option, name)) for option in options]
        if all(found):
            yield from found[0]
    elif typing.get_origin(hint) is tuple:
        for index, (part, each) in enumerate(zip(value, options, strict=True)):
            yield from wrong(part, each, f"{name}[{index}]")
    elif inspect.isclass(hint) and issubclass(hint, AbstractArray):
        if not isinstance(value, hint):
            got = getattr(value, "shape", None), getattr(value, "dtype", type(value))
            yield f"{name} is {got}, not {hint.__name__}"
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for field, each in hints_of(type(value)).items():
            yield from wrong(getattr(value, field), each, f"{name}.{field}")
    elif hint in (int, float, type(None)) and not isinstance(value, hint):
        yield f"{name} is a {type(value).__name__}, not {hint.__name__}"


def held_to_its_shapes(function, seen):
    """The function, which fails where an argument or result is of another shape."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args, **kwargs):
        seen.add(f"{function.__module__}.{function.__qualname__}")
        given = signature.bind(*args, **kwargs).arguments
        result = function(*args, **kwargs)
        hints = hints_of(function)
        with jaxtyped("context"):
            found = [
                message
                for name, value in {**given, "return": result}.items()
                for message in wrong(value, hints.get(name, typing.Any), name)
            ]
        assert not found, f"{function.__qualname__}: {'; '.join(found)}"
        return result

    return checked


def with_checks(rule, seen):
    """The rule, whose decisions are held to their shapes."""
    match rule:
        case Among():
            return rule._replace(selector=with_checks(rule.selector, seen))
        case After():
            name = "mix" if isinstance(rule.first, Mixing) else "factors"
            held = held_to_its_shapes(getattr(rule.first, name), seen)
            first = rule.first._replace(**{name: held})
            return After(first, with_checks(rule.rule, seen))
        case Weighting():
            return rule._replace(weigh=held_to_its_shapes(rule.weigh, seen))
    return rule


@pytest.fixture
def seen(monkeypatch):
    """Names of functions that were called, and all that solve or compare checked."""
    called = set()
    for found in pkgutil.walk_packages(consensus_optax.__path__, "consensus_optax."):
        module = sys.modules.get(found.name)
        for name, value in list(vars(module).items()) if module else ():
            own = inspect.isfunction(value) and value.__module__.startswith(CHECKED)
            if own and not name.startswith("__"):
                monkeypatch.setattr(module, name, held_to_its_shapes(value, called))
    return called


@pytest.mark.parametrize("row", EVERY_FACTORY)
def test_rules_keep_to_their_shapes(row, seen):
    """Traced, so that nothing is compiled; the state as well, from step to step."""
    rule = with_checks(row.make().rule, seen)
    reducer = consensus_optax.reducer(rule)
    rows = jax.tree.map(lambda leaf: jnp.zeros((B, *leaf.shape)), params())

    def states(rows):
        before = reducer.init(params())
        after = given_rows(reducer, rows, jnp.ones(B), before)[1]
        for state in () if row.per_leaf else (before, after):
            with jaxtyped("context"):
                assert not list(wrong(state, type(state), "state"))

    jax.eval_shape(states, rows)


def test_the_checks_can_fail(seen):
    roster = Roster(jnp.ones(B), jnp.int32(0), {})
    weigh = held_to_its_shapes(consensus_optax.krum(1).rule.weigh, seen)
    with pytest.raises(AssertionError, match=r"products is \(\(6, 5\), .*not Float"):
        held_to_its_shapes(_transposed, seen)(jnp.ones((B, B - 1)))
    with pytest.raises(AssertionError, match=r"roster\.step is"):
        weigh(jnp.eye(B), roster._replace(step=jnp.zeros(B, jnp.int32)), ())
    with pytest.raises(AssertionError, match=r"return\[0\] is \(\(6, 6\)"):
        held_to_its_shapes(_as_weights, seen)(jnp.eye(B))
    weigh(jnp.eye(B), roster, ())
    assert any("squared_distances" in name for name in seen)


def _transposed(products: "Gramian") -> typing.Any:  # noqa: F821
    return products.T


def _as_weights(gramian: "Gramian") -> "tuple[PerRow, typing.Any]":  # noqa: F821
    return gramian, ()


def test_users_need_no_jaxtyping():
    assert _typing.Gramian is jax.Array
