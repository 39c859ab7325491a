"""What no test sees if it is changed: mutants of the modules where rows are read.

    make mutants ARGS="--modules _rows/statistics --sample 60"

Works on a copy of the checkout. Of every module a sample of all mutants is tried, its
places spread over the file: first on the tests of `make test` that are meant for the
module, then, if these pass, on those that only CI runs. Those that pass are printed.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

ROOT = Path(__file__).parents[1]
_OF_RUNNING = ("_running/test_run.py", "test_contract_leaves.py", "test_laws.py")
_PRODUCTS = "_running/test_products.py"
_OF_MICROBATCHES = (
    _PRODUCTS,
    "engines/test_sources.py",
    "engines/test_value_and_reduced_grad.py",
    "engines/test_sharded_microbatches.py",
)
_OF_A_MESH = ("engines/test_sharded.py", "engines/test_sharded_mesh.py")
TESTS = {  # the quickest that tell of a module all that there is to tell
    "_rows/statistics": ("_rows/test_statistics.py",),
    "_rows/gramians": ("_rows/test_gramians.py",),
    "_rows/verbs": ("_rows/test_verbs.py", "_gradients/test_contraction.py"),
    "_rows/outer_product": ("_gradients/test_contraction.py",),
    "_rows/norm_bounds": ("_rows/test_norm_bounds.py",),
    "_rows/rounding": ("_rows/test_norm_bounds.py", "weightings/test_clipped_sum.py"),
    "_rows/layers": ("_gradients/test_contraction.py", "_rows/test_gramians.py"),
    "_rows/folding": ("_rows/test_folding.py",),
    "_rows/stack": ("test_contract.py", "test_contract_leaves.py"),
    "_running/run": _OF_RUNNING,
    "_running/weighing": ("_running/test_weighing.py", *_OF_RUNNING),
    "_running/memory": (_PRODUCTS, "engines/test_sources.py", *_OF_RUNNING),
    "_running/products": (_PRODUCTS, *_OF_RUNNING, "test_robustness.py"),
    "_running/packing": ("_running/test_packing.py", *_OF_RUNNING[:2]),
    "_running/blocks": ("_running/test_blocks.py", "test_contract_leaves.py"),
    "_running/reducer": ("_running/test_reducer.py", "test_contract.py"),
    "_running/checked": ("_running/test_checked.py",),
    "_running/explicit": ("_running/test_explicit.py",),
    "_running/named": ("_running/test_named.py",),
    "_gradients/untyped": ("_gradients/test_untyped.py",),
    "engines/backward/mixture": ("engines/backward/test_mixture.py",),
    "engines/_value_and_reduced_grad": (
        "engines/test_value_and_reduced_grad.py",
        "engines/test_value_and_reduced_grad_dtypes.py",
        "engines/test_value_and_reduced_grad_explicit.py",
    ),
    "engines/_sharded": (*_OF_A_MESH, "engines/test_sharded_partial.py"),
    "engines/microbatches/batches": _OF_MICROBATCHES,
    "engines/microbatches/source": _OF_MICROBATCHES,
    "engines/microbatches/combining": (
        "_running/test_weighing.py",
        *_OF_MICROBATCHES,
    ),
    "engines/microbatches/pairs": (
        "engines/microbatches/test_pairs.py",
        *_OF_MICROBATCHES[:3],
    ),
    "engines/backward/source": ("engines/backward/test_source.py",),
    "engines/backward/passes": (
        "engines/backward/test_source.py",
        "engines/backward/test_dealing.py",
    ),
    "engines/backward/dealing": ("engines/backward/test_dealing.py",),
    "_rows/slabs": ("_rows/test_slabs.py",),
    "engines/backward/choice": ("engines/backward/test_choice.py",),
    "_gradients/claims": ("_gradients/test_claims.py",),
    "_gradients/schedule": ("_gradients/test_schedule.py",),
    "engines/mesh/aggregator": ("engines/test_sharded_microbatches.py",),
    "engines/mesh/costs": ("engines/test_sharded_bytes.py", *_OF_A_MESH),
    "engines/mesh/source": (*_OF_A_MESH, "engines/test_sharded_microbatches.py"),
    "engines/mesh/factors": (
        "engines/test_sharded_factors_least.py",
        "engines/test_sharded_factored.py",
    ),
    "engines/mesh/layout": ("engines/test_sharded_factored.py", *_OF_A_MESH),
    "engines/mesh/specs": (_OF_A_MESH[1], "engines/test_sharded_partial.py"),
    "engines/mesh/exchange": _OF_A_MESH,
    "engines/mesh/spread": (_OF_A_MESH[1], "engines/test_sharded_fsdp.py"),
    "engines/mesh/entering": (_OF_A_MESH[1], "engines/test_sharded_fsdp.py"),
    "training/_state_of_rows": ("training/test_nnx.py", "training/test_linen.py"),
}
_FACTORS = "engines/test_sharded_factors.py::test"
_OF_FACTORS = (
    "engines/test_sharded_factors_bytes.py",
    f"{_FACTORS}_each_leaf_travels_as_it_was_meant_to",
    f"{_FACTORS}_what_fills_parts_up_is_not_counted",
    f"{_FACTORS}_rows_that_are_rounded_on_the_wire_are_multiplied_out",
    f"{_FACTORS}_a_parameter_cut_along_an_explicit_axis_is_multiplied_out",
    f"{_FACTORS}_factors_of_a_parameter_cut_along_another_axis",
    f"{_FACTORS}_two_mesh_axes_the_state_and_what_is_asked_of_coordinates",
    "engines/test_sharded_fsdp.py",
)
IN_CI = {  # those of `make test` leave the rest to these
    "engines/_sharded": ("engines/test_sharded_bytes.py",),
    "engines/mesh/source": ("engines/test_sharded_bytes.py", _OF_FACTORS[0]),
    "engines/mesh/factors": _OF_FACTORS,
    "engines/mesh/layout": _OF_FACTORS,
    "engines/mesh/exchange": ("engines/test_sharded_bytes.py", *_OF_FACTORS),
}
# Types are not run. (What `|` does between masks is mutated in other ways.)
OF_TYPES = "core/ReplaceBinaryOperator_BitOr_"
# What guards the program itself holds wherever it runs.
GUARD = "strict="
CONFIG = """\
[cosmic-ray]
module-path = "consensus_optax/{module}.py"
timeout = {timeout}.0
excluded-modules = []
test-command = "{command}"
[cosmic-ray.distributor]
name = "local"
"""


def place(mutation):
    """Where in the file it is, and what it changes there."""
    return mutation.start_pos, mutation.operator_name, mutation.occurrence


def spread(mutations, count, seed):
    """So many of them, one at each of as many places that are spread over the file."""
    draw, by_place = random.Random(seed), {}
    for mutation in sorted(mutations, key=place):
        by_place.setdefault(mutation.start_pos, []).append(mutation)
    for others in by_place.values():
        draw.shuffle(others)
    chosen = []
    while by_place and len(chosen) < count:
        wanted, places = count - len(chosen), list(by_place)
        step = max(len(places) / wanted, 1)
        start = draw.random() * step
        for index in range(min(wanted, len(places))):
            here = places[int(start + index * step) % len(places)]
            chosen.append(by_place[here].pop())
        by_place = {where: others for where, others in by_place.items() if others}
    return chosen


class Session:
    """Mutants of a module in a copy of the checkout, tried on one selection of tests.

    Attributes:
      mutations: all that the module has.
    """

    def __init__(self, copy, name, module, command, timeout):
        config = CONFIG.format(module=module, timeout=timeout, command=command)
        self._copy, self._config = copy, copy / f"{name}.toml"
        self._db = copy / f"{name}.sqlite"
        self._config.write_text(config)
        self._ray("init", self._config, self._db)
        with use_db(self._db, WorkDB.Mode.open) as db:
            every = [item.mutations[0] for item in db.work_items]
        lines = (copy / "consensus_optax" / f"{module}.py").read_text().splitlines()
        before = lambda line, column: lines[line - 1][:column]
        self.mutations = [
            mutation
            for mutation in every
            if not mutation.operator_name.startswith(OF_TYPES)
            and not before(*mutation.start_pos).endswith(GUARD)
        ]

    def check(self):
        """The tests pass on the module as it is."""
        self._ray("baseline", self._config)

    def survivors(self, chosen):
        """Of these mutants those that no test saw, each with its text."""
        chosen = set(map(place, chosen))
        with use_db(self._db, WorkDB.Mode.open) as db:
            mutation_of = {item.job_id: item.mutations[0] for item in db.work_items}
            for job, mutation in mutation_of.items():
                if place(mutation) not in chosen:
                    db.set_result(job, WorkResult(WorkerOutcome.SKIPPED))
        self._ray("exec", self._config, self._db)
        survived = TestOutcome.SURVIVED
        with use_db(self._db, WorkDB.Mode.open) as db:
            passed = [(job, x) for job, x in db.results if x.test_outcome is survived]
        return [(mutation_of[job], result.diff) for job, result in passed]

    def _ray(self, *given):
        ray = [sys.executable, "-m", "cosmic_ray.cli", *map(str, given)]
        subprocess.run(ray, cwd=self._copy, check=True)


def run(module, args):
    """Tries a module's mutants; (number tried, number of survivors)."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        left = shutil.ignore_patterns(".*", "runs", "results", "__pycache__")
        shutil.copytree(ROOT, copy, ignore=left)
        options = "-x -q -p no:cacheprovider -n 0 -W ignore"
        pytest = f"{sys.executable} -m pytest {options}"
        of = lambda paths: " ".join(f"tests/{path}" for path in paths)
        first = Session(
            copy, "first", module, f"{pytest} {of(TESTS[module])}", args.timeout
        )
        if args.check:
            first.check()
        chosen = spread(first.mutations, args.sample, args.seed)
        left = passed = first.survivors(chosen)
        if left and module in IN_CI:
            marked = f"{pytest} -m 'slow and not whole_zoo' {of(IN_CI[module])}"
            second = Session(copy, "second", module, marked, args.timeout)
            left = second.survivors([mutation for mutation, _ in passed])
        number, every = len(chosen), len(first.mutations)
        in_ci = f", {len(passed)} before CI" if module in IN_CI else ""
        share = f"{len(left) / max(number, 1):.0%}"
        report = f"{module}: {len(left)} of {number} survive ({share}{in_ci}; {every})"
        print("\n".join([report, *(diff for _, diff in left)]), flush=True)
        return number, len(left)


def main():
    """Prints the survivors, and their share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modules", nargs="+", choices=TESTS, default=[*TESTS])
    parser.add_argument("--sample", type=int, default=20, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="modules at a time")
    parser.add_argument("--timeout", type=int, default=600, help="seconds for each")
    parser.add_argument("--check", action="store_true", help="the tests as they are")
    args = parser.parse_args()
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda module: run(module, args), args.modules))
    number, survivors = map(sum, zip(*results, strict=True))
    print(f"in all: {survivors} of {number} survive ({survivors / number:.0%})")


if __name__ == "__main__":
    main()
