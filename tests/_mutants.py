"""What no test sees if it is changed: mutants of the modules where rows are read.

    make mutants ARGS="--modules _rows/statistics --sample 60"

Works on a copy of the checkout. Of every module a sample of all mutants is tried, each
on the tests that are meant for the module; those that pass are printed.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

ROOT = Path(__file__).parents[1]
_OF_RUNNING = ("test_laws.py", "test_contract_leaves.py", "test_robustness.py")
_OF_A_MESH = ("engines/test_sharded.py", "engines/test_sharded_bytes.py")
TESTS = {  # the quickest that tell of a module all that there is to tell
    "_rows/statistics": ("_rows/test_statistics.py",),
    "_rows/gramians": ("_rows/test_gramians.py",),
    "_rows/verbs": ("_rows/test_verbs.py", "_gradients/test_contraction.py"),
    "_rows/outer_product": ("_gradients/test_contraction.py",),
    "_rows/layers": ("_gradients/test_contraction.py", "_rows/test_gramians.py"),
    "_rows/folding": ("_rows/test_folding.py",),
    "_rows/stack": ("test_contract.py", "test_contract_leaves.py"),
    "_running/run": _OF_RUNNING,
    "_running/memory": _OF_RUNNING,
    "_running/products": _OF_RUNNING,
    "_running/packing": _OF_RUNNING,
    "_running/blocks": ("_running/test_blocks.py",),
    "_running/reducer": ("test_contract.py",),
    "engines/microbatches/batches": ("engines/test_value_and_reduced_grad.py",),
    "engines/microbatches/source": ("engines/test_sources.py",),
    "engines/microbatches/pairs": ("engines/test_sources.py",),
    "engines/mesh/source": _OF_A_MESH,
    "engines/mesh/factors": ("engines/test_sharded_factors.py",),
    "engines/mesh/layout": ("engines/test_sharded_factors.py",),
    "engines/mesh/exchange": _OF_A_MESH,
}
# Types are not run. (What `|` does between masks is mutated in other ways.)
LEFT_OUT = "core/ReplaceBinaryOperator_BitOr_"
CONFIG = """\
[cosmic-ray]
module-path = "consensus_optax/{module}.py"
timeout = {timeout}.0
excluded-modules = []
test-command = "{command}"
[cosmic-ray.distributor]
name = "local"
"""


def sampled(session, count, seed):
    """Leaves a sample of the mutants to be tried; the number of all."""
    with use_db(session, WorkDB.Mode.open) as db:
        items = list(db.work_items)
        operator = lambda item: item.mutations[0].operator_name
        kept = [x for x in items if not operator(x).startswith(LEFT_OUT)]
        chosen = random.Random(seed).sample(kept, min(count, len(kept)))
        chosen = {item.job_id for item in chosen}
        for item in items:
            if item.job_id not in chosen:
                skipped = WorkResult(worker_outcome=WorkerOutcome.SKIPPED)
                db.set_result(item.job_id, skipped)
    return len(kept)


def tried(session):
    """Of the mutants that were tried: how many, and the changes that no test saw."""
    with use_db(session, WorkDB.Mode.open) as db:
        results = [x for _, x in db.results if x.test_outcome is not None]
    outcome = lambda x: x.test_outcome
    return len(results), [x.diff for x in results if outcome(x) is TestOutcome.SURVIVED]


def run(module, args):
    """Tries a module's mutants; (number tried, survivors)."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        left = shutil.ignore_patterns(".*", "runs", "results", "__pycache__")
        shutil.copytree(ROOT, copy, ignore=left)
        paths = " ".join(f"tests/{path}" for path in TESTS[module])
        options = "-x -q -p no:cacheprovider -n 0 -W ignore"
        command = f"{sys.executable} -m pytest {options} {paths}"
        config, session = Path(folder) / "config.toml", Path(folder) / "session.sqlite"
        config.write_text(
            CONFIG.format(module=module, timeout=args.timeout, command=command)
        )
        ray = lambda *given: subprocess.run(
            [sys.executable, "-m", "cosmic_ray.cli", *map(str, given)],
            cwd=copy,
            check=True,
        )
        if args.check:
            ray("baseline", config)
        ray("init", config, session)
        count = sampled(session, args.sample, args.seed)
        ray("exec", config, session)
        number, survivors = tried(session)
        share = len(survivors) / max(number, 1)
        print(f"{module}: {len(survivors)} of {number} survive ({share:.0%}; {count})")
        for diff in survivors:
            print(diff, flush=True)
        return number, survivors


def main():
    """Prints the survivors, and their share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modules", nargs="+", choices=TESTS, default=[*TESTS])
    parser.add_argument("--sample", type=int, default=20, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=int, default=600, help="seconds for each")
    parser.add_argument("--check", action="store_true", help="the tests as they are")
    args = parser.parse_args()
    results = [run(module, args) for module in args.modules]
    number = sum(count for count, _ in results)
    survivors = sum(len(diffs) for _, diffs in results)
    print(f"in all: {survivors} of {number} survive ({survivors / number:.0%})")


if __name__ == "__main__":
    main()
