"""The plan of the house holds: imports go down, without cycles, and names stay in the registry."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "seqrl"

FLOORS = {
    7: ("cli", "api", "bench", "report", "__main__"),
    6: (
        *("experiment", "evaluating", "offline_contexts", "collect", "finetune", "doctor"),
        "export",
    ),
    5: ("trainer", "learner", "training", "optim", "loggers", "progress", "distributed"),
    4: (
        *("rollout", "evaluation", "eval_report", "acting", "targets", "trials", "policy", "video"),
        *("checkpoint", "runfolder", "devices"),
    ),
    3: ("agents", "references"),
    2: ("layers", "datasets"),
    1: ("envs", "spec", "spaces", "draws", "scores", "errors", "presets", "units"),
}
FREE = ("testing",)
"""The battery tests everything, so it may import everything; nothing else may import it."""


def modules() -> dict[str, Path]:
    out = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        out[".".join(p for p in parts if p != "__init__")] = path
    return out


def floor(module: str) -> int:
    room = module.split(".")[1]
    found = [f for f, rooms in FLOORS.items() if room in rooms]
    assert found, f"{module} stands on no floor of docs/architecture.md"
    return found[0]


def imports(path: Path) -> set[str]:
    """Modules of seqrl that a file imports, inside functions too (not under TYPE_CHECKING)."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    names = modules()
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in names else node.module
                for a in node.names
            }
    return {n for n in found if n.startswith("seqrl.") and n in names}


def top_level_imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    tree.body = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    found = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names = modules()
            for a in node.names:
                full = f"{node.module}.{a.name}"
                found.add(full if full in names else node.module)
    return {n for n in found if n.startswith("seqrl.")}


def test_nothing_imports_upwards() -> None:
    upward = []
    for name, path in modules().items():
        if name == "seqrl" or name.split(".")[1] in FREE:
            continue
        for target in imports(path):
            if target.split(".")[1] in FREE or floor(target) > floor(name):
                upward.append(f"{name} (floor {floor(name)}) imports {target}")
    assert not upward, "\n".join(upward)


def test_no_import_cycles() -> None:
    graph = {name: top_level_imports(path) for name, path in modules().items()}
    state: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if state.get(name) == 2:
            return
        assert name not in trail, " -> ".join((*trail, name))
        for target in graph.get(name, ()):
            visit(target, (*trail, name))
        state[name] = 2

    for name in graph:
        visit(name, ())


def test_trainer_rollout_and_cli_know_no_agent_or_environment_by_name() -> None:
    from seqrl.agents import registry
    from seqrl.envs import ENVIRONMENTS

    banned = {*registry.names(), *(e.id for e in ENVIRONMENTS)}
    files = [ROOT / f for f in ("trainer.py", "rollout.py", "evaluation.py", "experiment.py")]
    files += sorted((ROOT / "cli").glob("*.py"))
    named = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                for side in (node.left, *node.comparators):
                    if isinstance(side, ast.Constant) and side.value in banned:
                        named.append(f"{path.name}:{node.lineno} compares with {side.value!r}")
    assert not named, "\n".join(named)


@pytest.mark.parametrize(
    "code", ["import seqrl", "import seqrl.agents.registry", "import seqrl.scores"]
)
def test_light_imports_load_no_torch(code: str) -> None:
    check = f"{code}\nimport sys\nassert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_file_and_function_budgets_hold() -> None:
    over = []
    for name, path in modules().items():
        lines = path.read_text().count("\n")
        budget = 400 if name.startswith("seqrl.agents.") else 500
        if lines > budget:
            over.append(f"{name} has {lines} lines, budget {budget}")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                if length > 70:
                    over.append(f"{name}.{node.name} has {length} lines")
    assert not over, "\n".join(over)


def test_registry_rows_tell_the_truth() -> None:
    from seqrl.agents import registry
    from tests.agents.test_dt import size, task

    for row in registry.ROWS:
        cls = registry.agent_class(row.name)
        assert cls.name == row.name
        assert set(row.actions) == set(cls.action_kinds)
        assert row.acting == cls.acting_rules
        spec, stats = task(11, 3)
        millions = size(cls(cls.config_class(), [spec], [stats])) / 1e6
        assert abs(millions - row.parameters) < 0.01, (row.name, millions)
