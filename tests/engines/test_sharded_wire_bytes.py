"""Bytes of messages on the wire, read off the compiled programs."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from benchmarks._traffic import bytes_sent, collectives
from tests._selected import in_ci
from tests.engines.test_sharded import mesh_of
from tests.engines.test_sharded_wire import CODES, KINDS, N

SHAPES = [(1 << 14, 2), (33,), (257, 3)]
SIZE = sum(map(math.prod, SHAPES))
PER_NUMBER = {"int8": 1, "int4": 1 / 2, "sign": 1 / 8, "natural": 9 / 8}


def program(reducer, num_rows=N, **options):
    mesh, params = mesh_of(N), [jnp.zeros(shape) for shape in SHAPES]
    across = co.sharded(reducer, "data", **options)
    rows = [jax.ShapeDtypeStruct((num_rows, *shape), jnp.float32) for shape in SHAPES]
    step = lambda rows: across.update(rows, reducer.init(params), params)
    mapped = jax.shard_map(step, mesh=mesh, in_specs=P("data"), out_specs=P())
    given = jax.NamedSharding(mesh, P("data"))
    return jax.jit(mapped, in_shardings=given).lower(rows).compile().as_text()


def slack(num_rows=N):
    """Gramians, what is said of rows, scales of parts, and parts filled up."""
    gramians = 4 * 2 * 4 * (num_rows + 1) ** 2
    return gramians + 16 * num_rows + len(SHAPES) * N * (num_rows // N + 1) * 16


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        pytest.param("int4", "columns", marks=in_ci),
        pytest.param("int8", "gramian", marks=in_ci),
        pytest.param("sign", "mean", marks=in_ci),
        pytest.param("natural", "fold", marks=in_ci),
        pytest.param("int4", "mixing", marks=in_ci),
    ],
)
def test_bytes_in_the_compiled_program(code, kind):
    """Rows in messages, the update in float32; then in messages as well."""
    each = PER_NUMBER[code]
    sent = bytes_sent(program(KINDS[kind](), wire=CODES[code]), N)
    there = each * SIZE * (N - 1) / N
    back = 4 * SIZE * (N - 1) / N
    assert there + back <= sent <= there + back + slack()
    options = {"wire": CODES[code], "update_wire": CODES[code]}
    both = program(KINDS[kind](), **options)
    assert 2 * there <= bytes_sent(both, N) <= 2 * there + slack()
    kinds = [what for what, size in collectives(both) if size > slack()]
    assert kinds == ["all-to-all", "all-gather"]


@in_ci
@pytest.mark.parametrize(("code", "share"), [("top_k", 0.3 * 1.5), ("random_k", 0.3)])
def test_bytes_of_sparse_messages(code, share):
    """Numbers of 4 bytes, and places of 2 in parts of up to 65536."""
    sent = bytes_sent(program(co.cosine_filter(), wire=CODES[code]), N)
    wanted = (4 * share * SIZE + 4 * SIZE) * (N - 1) / N
    down = 6 * N  # a share of each device's part is a whole number of entries
    assert wanted - down <= sent <= wanted + slack()


@in_ci
def test_bytes_of_thin_products():
    """Rank 1 of (256, 128): the shorter factor dealt out, the longer to everyone."""
    mesh, params = mesh_of(N), jnp.zeros((256, 128))
    across = co.sharded(co.median(), "data", wire=CODES["low_rank"])
    step = lambda rows: across.update(rows, co.median().init(params), params)[0]
    mapped = jax.shard_map(step, mesh=mesh, in_specs=P("data"), out_specs=P())
    given = jax.ShapeDtypeStruct((N, 256, 128), jnp.float32)
    sent = bytes_sent(jax.jit(mapped).lower(given).compile().as_text(), N)
    rows, back = 4 * N * (256 / N + 128) * (N - 1) / N, 4 * 256 * 128 * (N - 1) / N
    assert sent <= rows + back + slack()
