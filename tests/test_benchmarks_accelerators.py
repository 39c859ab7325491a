"""What is read off programs compiled for devices that are not there."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import _bundles, _harness, _programs, _targets, accelerators

# As XLA prints it: a loop of three turns in a branch, one that data decide, and one
# whose turns are told by its condition alone.
HLO = """\
HloModule jit_f, is_scheduled=true

%fused (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %sine = f32[4]{0} sine(%x)
}

%counts (state: (s32[], f32[4])) -> pred[] {
  %state = (s32[], f32[4]{0}) parameter(0)
  %bound = s32[]{:T(128)} constant(7)
  %turn = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%turn, %bound), direction=LT
}

%asks (state: (s32[], f32[4])) -> pred[] {
  %state = (s32[], f32[4]{0}) parameter(0)
  %value = f32[4]{0} get-tuple-element(%state), index=1
  ROOT %small = pred[] fusion(%value), kind=kLoop, calls=%fused
}

%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %state = (s32[], f32[4]{0}) parameter(0)
  %value = f32[4]{0} get-tuple-element(%state), index=1
  %once = f32[4]{0} fusion(%value), calls=%fused, \
backend_config={"estimated_cycles":"10"}
  %twice = f32[4]{0} copy(%once), backend_config={"estimated_cycles":"5"}
  ROOT %next = (s32[], f32[4]{0}) tuple(%turn, %twice)
}

%loops (x: (s32[], f32[4])) -> (s32[], f32[4]) {
  %x = (s32[], f32[4]{0}) parameter(0)
  ROOT %three = (s32[], f32[4]{0}) while(%x), condition=%counts, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
}

%does_not (x: (s32[], f32[4])) -> (s32[], f32[4]) {
  ROOT %x = (s32[], f32[4]{0}) parameter(0)
}

ENTRY %main (x: (s32[], f32[4]), y: pred[]) -> (s32[], f32[4]) {
  %x = (s32[], f32[4]{0}) parameter(0)
  %seven = (s32[], f32[4]{0}) while(%x), condition=%counts, body=%body
  %asked = (s32[], f32[4]{0}) while(%seven), condition=%asks, body=%body
  ROOT %either = (s32[], f32[4]{0}) conditional(%y, %asked, %asked), \
true_computation=%loops, false_computation=%does_not
}
"""


def test_loops_branches_and_cycles_of_a_program():
    program = _programs.read(HLO)
    assert program.trips == (7, None, 3)
    for counts, turns in ((program.least, 7 + 1), (program.most, 7 + 1 + 3)):
        assert (counts["kernels"], counts["cycles"]) == (2 * turns, 15 * turns)
        assert counts["bundles"] == 0
    assert program.fusions == 2


# As libtpu dumps it: one bundle ahead, a loop that counts to 9 with a stage to fill its
# pipeline, in it one of 3 turns, and an empty bundle, which does not say where it is.
DUMP = """\
LB: loop body
     0   :  { %s1 = smov 0 }
   0x1 LB: > { %s2 = sadd.s32 1, %s1 /* iteration index, stage = 1 */ }
   0x2   :  {} /* End region 27 */
   0x3 LB: > > { %p1 = scmp.ge.s32.totalorder %s3, 3 /* loop exit test */ }
   0x4   : > > { %v1 = vld [vmem:[%s1]] }
   0x5 PF: > { %p2 = scmp.ge.s32.totalorder %s2, 9 /* loop exit test */ }
   0x6   :  { %s4 = smov 0 }
"""


def test_bundles_of_a_kernel_and_of_those_like_it(tmp_path):
    assert _bundles.of_kernel(DUMP) == 2 + (9 - 1) * (3 + 3 * 2)
    # XLA knows of 7 turns: two more fill and empty the pipeline
    assert _bundles.of_kernel(DUMP, 7) == 2 + 7 * (3 + 3 * 2)
    (tmp_path / "1-once-01-final_bundles.txt").write_text(DUMP)
    (tmp_path / "1-TLP-01-final_bundles.txt").write_text(DUMP)
    alike = "  %other = f32[4]{0} fusion(%once), calls=%fused2, metadata={x}\n"
    text = HLO.replace("  %twice", alike + "  %twice")
    copy = text[text.index("%fused (x") : text.index("%counts")]
    text = text.replace("%counts (", copy.replace("%fused", "%fused2") + "%counts (", 1)
    found = _bundles.of_operations(text, tmp_path)
    assert found == dict.fromkeys(("once", "other"), _bundles.of_kernel(DUMP))
    least = _programs.read(HLO, found).least
    assert least["bundles"] == (7 + 1) * found["once"]


def test_turns_of_a_program_compiled_here():
    def step(x):
        x = jax.lax.fori_loop(0, 5, lambda i, x: jnp.sin(x @ x), x)
        return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x @ x, x)

    text = jax.jit(step).lower(jnp.ones((8, 8))).compile().as_text()
    program = _programs.read(text)
    assert sorted(map(str, program.trips)) == ["5", "None"]
    assert program.least["kernels"] > 5
    assert program.least["cycles"] == 0


def row(target, workload, name, temp):
    numbers = {"kernels": 3, "kernels_most": 4, "fusions": 2, "loops": 1, "trips": [5]}
    numbers |= {"cycles": 1, "cycles_ratio": 1.0, "cycles_most_ratio": 2.0}
    numbers |= {"flops_ratio": 1.0, "bytes_accessed_ratio": 1.0, "compile_s": 9.0}
    of = {"target": target, "workload": workload, "contestant": name}
    return {**of, **numbers, "temp_in_params": temp}


def test_new_rows_take_the_place_of_old_ones():
    old = [row("v5e", "mlp", "median", 1.0), row("v5e", "mlp", "plain", 2.0)]
    new = [row("v5e", "mlp", "median", 3.0), row("h100", "cnn", "plain", 4.0)]
    merged = accelerators.merged(old, new)
    assert [one["temp_in_params"] for one in merged] == [4.0, 2.0, 3.0]
    text = accelerators.report(merged)
    line = "| median | 3.00 | 3 to 4 | 1 (5) | 2 |  | 1.00 to 2.00 | 1.00 | 1.00 | 9 |"
    assert line in text.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["h100", "v5e"])
def test_one_rule_of_each_kind_compiles(target, tmp_path):
    """In a process of its own: a compiler for devices is loaded once."""
    if target not in _targets.available():
        pytest.skip(f"{_targets.package(target)} is not installed: see `make help`")
    command = [sys.executable, "-m", "benchmarks.accelerators", "--smoke"]
    command += ["--targets", target, "--out", str(tmp_path)]
    subprocess.run(command, check=True, timeout=600)
    rows = _harness.read("accelerators", tmp_path)
    assert [one["contestant"] for one in rows] == ["plain", *accelerators.SMOKE]
    assert rows[0]["loops"] == 0
    assert all(one["collective_bytes"] == 0 < one["kernels"] for one in rows)
    assert all((one["bundles"] is not None) == (target == "v5e") for one in rows)
