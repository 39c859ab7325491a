"""Factors that have other axes than their parameter: embeddings, attention kernels."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from tests._models import assert_close, transformer

pytestmark = [pytest.mark.standard_promotion, pytest.mark.slow]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_any_factored_leaf_is_opened_under_jit(kind):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    place = NamedSharding(mesh.abstract_mesh, P())
    look_up = lambda table, tokens: table.at[tokens].get(out_sharding=place)
    on_mesh = transformer(look_up) if kind == AxisType.Explicit else transformer()
    model = transformer()
    rules = {"median": co.median(), "sign_consensus": co.sign_consensus()}

    def updates(loss, wrap):
        def run(params, batch):
            rows = co.per_example_grad(loss)(params, batch)
            assert co.is_outer_product(rows["words"])
            assert co.is_outer_product(rows["qkv"])
            rules_ = {name: wrap(rule) for name, rule in rules.items()}
            return {
                name: rule.update(rows, rule.init(params), params)[0]
                for name, rule in rules_.items()
            }

        return jax.jit(run)

    put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
    given = jax.tree.map(put, model.params), put(model.batch, "data")
    across = updates(on_mesh.loss, lambda rule: co.sharded(rule, "data", mesh=mesh))
    found = across(*given)
    expected = updates(model.loss, lambda rule: rule)(model.params, model.batch)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_close(x, y, 1e-5)  # products in parts
    assert jnp.any(found["sign_consensus"]["words"] != 0)
