"""The rules of the house, checked: sizes, floors, names, documentation, imports."""

import ast
import functools
import graphlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import consensus_optax as co

ROOT = Path(__file__).parents[1]
PACKAGE, TESTS = ROOT / "consensus_optax", ROOT / "tests"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TEST_FILES = sorted(TESTS.rglob("test_*.py"))
ALL_FILES = [
    *SOURCES,
    *sorted(TESTS.rglob("*.py")),
    *sorted(ROOT.glob("benchmarks/**/*.py")),
    *sorted(ROOT.glob("examples/**/*.py")),
]

# A room (a folder, or a module beside them) imports from floors below its own, and from
# rooms of its own floor as long as these do not lead back to it.
FLOORS = {
    **dict.fromkeys(["_typing", "_check"], 0),
    "_rows": 1,
    **dict.fromkeys(["_gradients", "_rules"], 2),
    "_running": 3,
    **dict.fromkeys(["folds", "columns", "weightings", "mixings"], 4),
    **dict.fromkeys(["row_transforms", "update_transforms", "engines"], 4),
    **dict.fromkeys(["scalarizers", "compressors"], 4),
    **dict.fromkeys(["diagnostics", "attacks"], 5),
    **dict.fromkeys(["training", "tasks", "privacy", "federated"], 6),
    **dict.fromkeys(["__init__", "_registry", "comparison", "__main__"], 7),
    **dict.fromkeys(["_command_line", "_federated_command"], 7),
}
# What would be allowed by its floor and is not.
APART = {("_running", "_gradients")}
# Floors 0 to 5 stand on these alone; whatever else is optional is imported above.
# Inside a function of diagnostics/_plot.py matplotlib may be.
CORE_IMPORTS = {*sys.stdlib_module_names, "consensus_optax", "jax", "numpy", "optax"}
CORE_IMPORTS |= {"jaxtyping", "typing_extensions"}  # for type checkers alone
# Tests that belong to no single source file.
CROSS_CUTTING = {
    *[
        "test_house",
        "test_readme",
        "test_documents",
        "test_traps",
        "test_traps_factored",
        "test_orders",
        "test_laws",
        "test_values",
        "test_several_losses",
        "test_fuzz",
    ],
    *["test_benchmarks_picture", "test_benchmarks_scale", "test_examples"],
    *["test_benchmarks", "test_benchmarks_accelerators", "test_benchmarks_federated"],
    *["test_examples", "test_benchmarks_how_many_rows", "test_benchmarks_scale"],
    *["test_benchmarks_multihost", "test_benchmarks_privacy", "test_multihost"],
    *["test_benchmarks_gauss_newton", "test_quality", "test_quality_pictures"],
    *["test_quality_questions", "test_quality_jobs", "test_benchmarks_gpu"],
    *["test_benchmarks_compression", "test_benchmarks_unlike_and_late"],
    *["test_benchmarks_client_memory", "test_benchmarks_uses", "test_benchmarks_kept"],
    *["test_contract", "test_contract_optax", "test_contract_flax"],
    *[
        "test_contract_leaves",
        "test_contract_memory",
        "test_sources",
        "test_sources_of_sums",
        "test_derivatives",
    ],
    *["test_multi_objective_stationary", "test_multi_objective_memory"],
    *["test_robustness", "test_robust_values", "test_multi_objective_values"],
    *["test_pitfalls", "test_precision"],
    *["test_multi_objective_stationary", "test_multi_objective_memory"],
    *["test_attacks", "test_byzfl", "test_selection", "test_server_optimizers"],
    *["test_private_rounds", "test_main_federated", "test_benchmarks_clients"],
}


def path_id(path):
    return str(path.relative_to(ROOT))


@functools.cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """Dotted names that a file imports, also inside its functions."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def place(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", SOURCES, ids=path_id)
def test_imports_go_down_only(path):
    assert place(path) in FLOORS, "give it a floor in FLOORS"
    own = FLOORS[place(path)]
    for dotted in imports(path):
        top, *inner = dotted.split(".")
        if top == "consensus_optax":  # a name that is no module comes from __init__
            target = inner[0] if inner and inner[0] in FLOORS else "__init__"
            assert FLOORS[target] <= own, f"{dotted} is on floor {FLOORS[target]}"
            assert (place(path), target) not in APART
        plots = path.stem == "_plot" and top == "matplotlib"
        assert own > 5 or plots or top in CORE_IMPORTS, f"floor {own} imports {top}"


def own_modules(path):
    """Files of the package that a file imports."""
    for dotted in imports(path):
        names = dotted.split(".")
        if names[0] != "consensus_optax":
            continue
        found = [ROOT.joinpath(*names[:end]) for end in range(2, len(names) + 1)]
        files = [x.with_suffix(".py") for x in found] + [
            x / "__init__.py" for x in found
        ]
        yield from (file for file in files if file.exists() and file != path)


def test_no_circles_of_files():
    """Beyond __init__ files, which name what their folder has."""
    graph = {
        path: {x for x in own_modules(path) if x.stem != "__init__"} for path in SOURCES
    }
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_no_circles_of_rooms():
    graph = {name: set() for name in FLOORS}
    for path in SOURCES:
        if path != PACKAGE / "__init__.py":
            others = {place(x) for x in own_modules(path)} - {place(path)}
            graph[place(path)] |= others
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("room", [x for x in FLOORS if (PACKAGE / x).is_dir()])
def test_a_room_says_what_lives_there(room):
    doc = ast.get_docstring(tree(PACKAGE / room / "__init__.py"))
    assert doc
    assert "mport" in doc, "what may it import?"


def test_one_file_touches_optax_experimental():
    def used(path):
        yield from imports(path)
        nodes = ast.walk(tree(path))
        yield from (ast.unparse(x) for x in nodes if isinstance(x, ast.Attribute))

    unstable = "optax.experimental"
    touching = [p for p in SOURCES if any(x.startswith(unstable) for x in used(p))]
    assert [path.name for path in touching] == ["reducer.py"]


def test_import_loads_nothing_that_jax_and_optax_do_not():
    code = (
        "import sys, jax, optax; before = {*sys.modules}; import consensus_optax; "
        "print(*{*sys.modules} - before)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = {module.partition(".")[0] for module in done.stdout.split()}
    assert loaded - sys.stdlib_module_names <= {"consensus_optax", "jax", "jaxlib"}


def test_public_names_are_listed_once():
    assert len(set(co.__all__)) == len(co.__all__)


@pytest.mark.parametrize("name", co.__all__)
def test_public_name_is_documented(name):
    public = getattr(co, name)
    doc = inspect.getdoc(public)
    assert doc, "no docstring"
    assert not doc.startswith(f"{name}("), "the docstring that NamedTuple made"
    if inspect.isfunction(public):
        for section in ("Returns:", "Examples:"):
            assert f"\n{section}\n" in doc, f"no section {section}"


@pytest.mark.parametrize("path", ALL_FILES, ids=path_id)
def test_no_file_exceeds_300_lines(path):
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert num_lines <= 300


@pytest.mark.parametrize("path", TEST_FILES, ids=path_id)
def test_test_file_mirrors_a_source_file(path):
    """folds/test_mean.py or folds/test_mean_values.py, if there is folds/_mean.py."""
    if path.stem in CROSS_CUTTING:
        return
    folder = PACKAGE / path.parent.relative_to(TESTS)
    sources = [source.stem.strip("_") for source in folder.glob("*.py")]
    topic = path.stem.removeprefix("test_") + "_"
    assert any(topic.startswith(f"{source}_") for source in sources), (
        f"no source in {path_id(folder)}; list cross-cutting tests in CROSS_CUTTING"
    )
