"""Programs of many devices: what they send, and decoders of a stated size."""

import jax
import pytest

from benchmarks import _flops, _harness, _llama, _programs, _traffic, scale

# As XLA prints it for a TPU: a loop that counts to 8 by twos, a gather that one fusion
# starts and another ends, and branches that send nothing: in the loop, where the other
# is for the first turn, and at the end, where it is for an accident.
HLO = """\
HloModule jit_f, is_scheduled=true

%starts (x: f32[4]) -> f32[32] {
  %x = f32[4]{0} parameter(0)
  ROOT %all-gather.1 = f32[32]{0} all-gather(%x), dimensions={0}
}

%ends (x: f32[4]) -> f32[32] {
  %x = f32[4]{0} parameter(0)
  ROOT %all-gather.2 = f32[32]{0} all-gather(%x), dimensions={0}
}

%counts (state: (f32[4], u32[])) -> pred[] {
  %state = (f32[4]{0}, u32[]) parameter(0)
  %bound = u32[]{:T(128)} constant(8)
  %turn = u32[] get-tuple-element(%state), index=1
  ROOT %less = pred[] compare(%turn, %bound), direction=LT
}

%body (state: (f32[4], u32[])) -> (f32[4], u32[]) {
  %state = (f32[4]{0}, u32[]) parameter(0)
  %value = f32[4]{0} get-tuple-element(%state), index=0
  %turn = u32[] get-tuple-element(%state), index=1
  %two = u32[] constant(2)
  %async-collective-start.1 = f32[32]{0} fusion(%value), kind=kCustom, calls=%starts
  %async-collective-done.1 = f32[32]{0} fusion(%async-collective-start.1), \
kind=kCustom, calls=%ends
  %sends = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%value), \
channel_id=4
  %other = f32[4]{0} conditional(%first_turn, %value, %value), \
true_computation=%deals, false_computation=%does_not
  %on = u32[] add(%turn, %two)
  ROOT %next = (f32[4]{0}, u32[]) tuple(%value, %on)
}

%sums (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %all-reduce.1 = f32[4]{0} all-reduce(%x), channel_id=5, to_apply=%add
}

%deals (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %all-to-all.1 = f32[4]{0} all-to-all(%x), channel_id=1, dimensions={0}
}

%does_not (x: f32[4]) -> f32[4] {
  ROOT %x = f32[4]{0} parameter(0)
}

ENTRY %main (x: f32[4], y: pred[]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %loop = (f32[4]{0}, u32[]) while(%x), condition=%counts, body=%body
  %dealt = f32[4]{0} all-to-all(%x), channel_id=6, dimensions={0}
  %shared = f32[2]{0} reduce-scatter(%x), channel_id=7, dimensions={0}
  %total = f32[4]{0} all-reduce(%x), channel_id=8, to_apply=%add
  ROOT %either = f32[4]{0} conditional(%y, %x, %x), \
true_computation=%sums, false_computation=%does_not
}
"""


def test_loops_may_count_by_more_than_one():
    assert _programs.read(HLO).trips == (4,)


def test_bytes_are_counted_as_often_as_they_are_sent():
    gather, permute = 32 * 4 * 7 / 8, 4 * 4
    dealt, scattered, summed = 4 * 4 * 7 / 8, 2 * 4 * 7, 2 * 4 * 4 * 7 / 8
    expected = 4 * (gather + permute) + dealt + dealt + scattered + summed
    assert _traffic.bytes_in_turns(HLO, 8) == expected


def test_products_on_devices_count_on_each():
    spec = jax.sharding.PartitionSpec
    mesh = jax.make_mesh((4,), ("d",), (jax.sharding.AxisType.Auto,))
    product = lambda x: x @ x.T
    whole = {"mesh": mesh, "in_specs": spec(None, "d"), "out_specs": spec("d")}
    x = jax.ShapeDtypeStruct((4, 8), "float32")
    program = jax.make_jaxpr(jax.shard_map(product, **whole))(x)
    assert _flops.of_products(program.jaxpr, 1) == 2 * 4 * 8 * 4


@pytest.mark.parametrize(
    ("target", "least", "most"), [("v5e:4x4", 1.0e9, 1.2e9), ("h100:1x1x8", 7e9, 7.5e9)]
)
def test_decoders_are_as_large_as_they_are_said_to_be(target, least, most):
    shapes = _llama.shapes(scale.MODELS[target])
    assert least < sum(leaf.size for leaf in jax.tree.leaves(shapes)) < most


@pytest.mark.slow
def test_a_small_decoder_is_compiled_on_the_cpu(tmp_path):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        scale.main(["--smoke", "--out", str(tmp_path), "--contestants", "plain"])
        scale.main(["--smoke", "--out", str(tmp_path), "--contestants", "median"])
    plain, median = _harness.read("scale", tmp_path)
    assert plain["bytes_sent"] > 0 < plain["temp_bytes"]
    assert median["flops_ratio"] < 1.3  # one pass, and what tells finite rows
    assert (tmp_path / "scale.md").read_text().count("\n") == 4
