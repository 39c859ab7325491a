"""What factors send: the formula of `sharded`, counted in the compiled programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from benchmarks import bytes as traffic
from benchmarks._traffic import bytes_sent, collectives
from benchmarks._workloads import Workload, mlp
from consensus_optax.engines.mesh.factors import Factors, as_travelling
from tests.engines.test_sharded import mesh_of
from tests.engines.test_sharded_bytes import KINDS

pytestmark = pytest.mark.slow

N, ROWS = 8, 16
EACH = ROWS // N
part = lambda size: -(-size // N)


def counted(reducer, factored=True, workload=None):
    with jax.numpy_rank_promotion("allow"):  # the model adds biases
        hlo = traffic.compiled_step(reducer, workload or mlp(ROWS), factored, N)
    return bytes_sent(hlo, N), [kind for kind, _ in collectives(hlo)]


def plain(workload=None):
    """Of an all-reduce of the update."""
    leaves = jax.tree.leaves((workload or mlp(ROWS)).params)
    return 2 * 4 * sum(leaf.size for leaf in leaves) * (N - 1) / N


def dealt(shape, itemsize=4):
    """Bytes to each other device, there, and of float32 back: of one dense leaf."""
    if len(shape) == 1:
        return EACH * itemsize * part(*shape), 4 * part(*shape)
    m, n = shape
    columns = m + part(n), m * part(n)
    lines = n + part(m), n * part(m)
    both = [(EACH * itemsize * there, 4 * back) for there, back in (columns, lines)]
    return min(both, key=sum)


ROSTER = 4 * (EACH + 1)  # weights, and how many rows are not finite
GRAMIAN = 2 * 4 * ROWS**2 * (N - 1) / N


@pytest.mark.parametrize("name", traffic.STEPS)
def test_a_step_of_the_mlp_sends_what_the_formula_says(name):
    """Of every kind of rule half of an all-reduce, where arrays send up to 1.5."""
    leaves = jax.tree.leaves(mlp(ROWS).params)
    signs = name == "sign_vote"
    sizes = [dealt(leaf.shape, 1 if signs else 4) for leaf in leaves]
    there, back = map(sum, zip(*sizes, strict=True))
    back = back // 4 if signs else back
    # of the rows, and of rows less one of them; squares of rows that tell their size
    gramians = {"cosine_filter": 1, "krum": 2}.get(name, 0)
    squares = GRAMIAN // ROWS if gramians else 0
    sent, _ = counted(traffic.STEPS[name]())
    assert sent == (N - 1) * (there + back + ROSTER) + gramians * GRAMIAN + squares
    assert sent <= 0.52 * plain()
    if name == "median":
        arrays = sum((EACH + 1) * 4 * part(leaf.size) for leaf in leaves)
        assert counted(co.median(), factored=False)[0] == (N - 1) * (arrays + ROSTER)


def deep(layers):
    """Dense layers of one size with a bias each."""
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    params = [{"w": draw(64, 64), "b": draw(64)} for _ in range(layers)]

    def loss(params, batch):
        x, y = batch
        for layer in params:
            x = jnp.tanh(x @ layer["w"] + layer["b"])
        return jnp.mean((x.sum(-1) - y) ** 2)

    return Workload("deep", loss, params, (draw(ROWS, 64), draw(ROWS)))


NOW = ("fold", "affine", "by leaf")
OF_KINDS = [
    pytest.param(kind, marks=() if kind in NOW else pytest.mark.whole_zoo)
    for kind in KINDS
]


@pytest.mark.parametrize("kind", OF_KINDS)
def test_launches_do_not_grow_with_leaves(kind):
    """Nor does any kind of rule send as much as an all-reduce."""
    programs = [counted(KINDS[kind](), workload=deep(layers)) for layers in (2, 4)]
    (_, few), (sent, more) = programs
    assert sorted(few) == sorted(more)
    # there, of two factors, and back; two Gramians, and three facts about rows
    assert len(more) <= 8
    assert sent < plain(deep(4))


def rows_of_all_kinds(num_rows):
    """A look-up, two layers in bfloat16, and products with terms as long as wide."""
    normal = lambda dtype, *shape: jnp.ones((num_rows, *shape), dtype)
    return {
        "layers": co.OuterProduct(
            *(normal(jnp.bfloat16, 2, 1, 40), normal(jnp.bfloat16, 2, 1, 44)),
            row_shape=(2, 40, 44),
            dtype=np.dtype(jnp.bfloat16),
        ),
        "long": co.OuterProduct(
            normal(float, 16, 16), normal(float, 16, 16), row_shape=(16, 16)
        ),
        "table": co.OuterProduct(
            jnp.zeros((num_rows, 3), jnp.int32), normal(float, 3, 20), (100, 20)
        ),
    }


def test_what_fills_parts_up_counts():
    """Nine columns on eight devices are sixteen, on the way back of 100 lines each."""
    look_ups = jnp.zeros((1, 20), jnp.int32), jnp.ones((1, 20, 9))
    rows = co.OuterProduct(*look_ups, (100, 9))
    there = 20 * (4 + 4 * part(9))
    assert there < 4 * part(900) < there + 4 * (100 * part(9) - part(900))
    assert isinstance(as_travelling(rows, N, False, jnp.float32), jax.Array)
    wide = co.OuterProduct(look_ups[0], jnp.ones((1, 20, 16)), (100, 16))
    assert isinstance(as_travelling(wide, N, False, jnp.float32), Factors)


def test_each_leaf_by_what_is_less_to_send():
    rows = rows_of_all_kinds(ROWS)
    params = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype),
        rows,
        is_leaf=co.is_outer_product,
    )
    across = co.sharded(co.median(), "data")
    step = lambda rows: across.update(rows, across.init(params), params)[0]
    run = jax.shard_map(
        step, mesh=mesh_of(N), in_specs=jax.P("data"), out_specs=jax.P()
    )
    hlo = jax.jit(run).lower(rows).compile().as_text()
    there = {
        "layers": 2 * 2 * (44 + part(40)),  # eight times five lines
        "long": 4 * part(16 * 16),
        "table": 3 * (4 + 4 * part(20)),
    }
    back = 2 * 2 * part(40) * 44 + 4 * part(16 * 16) + 4 * 100 * part(20)
    whole = EACH * sum(there.values()) + back + ROSTER
    assert bytes_sent(hlo, N) == (N - 1) * whole
