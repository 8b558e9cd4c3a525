"""The house: who may import whom, and what an import costs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# The list in docs/code.md, from the ground up: lines of top-level files, and of files and folders of wsol/.
LIST = re.search(r"```text\n(demo\.py\n.*?)```", (ROOT / "docs" / "code.md").read_text(), re.DOTALL)
FLOORS = [line.replace(".py", "").replace("/", ".").split() for line in reversed(LIST[1].splitlines())]
FILES = [*ROOT.glob("*.py"), *(ROOT / "wsol").rglob("*.py")]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in FILES}


def floor_of(module: str) -> int:
    for number, rooms in enumerate(FLOORS):
        if room_of(module) in rooms:
            return number
    raise AssertionError(f"{module} is not in the list of docs/code.md")


def room_of(module: str) -> str:
    """The top-level file, or the file or folder of wsol/, that a module belongs to."""
    return ".".join(module.split(".")[:2])


def imports_of(path: Path) -> set[str]:
    """The project's modules that a file imports anywhere, except for type checkers."""

    def visit(node):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in MODULES else lazily(node.module, alias.name))
        for child in ast.iter_child_nodes(node):
            visit(child)

    found: set[str] = set()
    visit(ast.parse(path.read_text()))
    return {module for module in found if module in MODULES}


def lazily(package: str, name: str) -> str:
    """Where a package that loads its names when they are used takes one of them from, by its .pyi file."""
    stub = ROOT.joinpath(*package.split("."), "__init__.pyi")
    if stub.exists():
        for node in ast.parse(stub.read_text()).body:
            if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
                return lazily(f"{package}.{node.module}", name)
    return package


GRAPH = {module: imports_of(path) for module, path in MODULES.items()}


def test_no_arrow_points_up():
    wrong = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        if module != "wsol"
        for other in others
        if other != "wsol" and room_of(other) != room_of(module) and floor_of(other) >= floor_of(module)
    ]
    assert not wrong and sum(map(len, GRAPH.values())) > 100


def test_no_circle():
    done: set[str] = set()

    def visit(module, path):
        assert module not in path, " → ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in GRAPH[module]:
                visit(other, [*path, module])
            done.add(module)

    for module in GRAPH:
        visit(module, [])
    assert done == set(MODULES)


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("wsol")])
def test_the_first_line_says_what_lives_there(module):
    text = ast.get_docstring(ast.parse(MODULES[module].read_text()))
    first = (text or "").split("\n")[0]
    assert len(first) > 20 and first[-1] in ".:?", f"{module}: {first!r}"


@pytest.mark.parametrize(
    "statement",
    ["import wsol", "import config", "import wsol.metrics, wsol.cam, wsol.backbones, wsol.datasets, wsol.losses"],
)
def test_what_lists_names_imports_nothing_heavy(statement):
    heavy = "{'torch', 'torchvision', 'timm', 'wandb', 'matplotlib', 'numba'} & set(sys.modules)"
    code = f"import sys; {statement}; print(sorted({heavy}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["main", "inference", "evaluation"])
@pytest.mark.parametrize("flags, code", [(["--help"], 0), (["--no_such_flag"], 2)])
def test_help_and_mistyped_flags_are_answered_without_torch(command, flags, code, tmp_path):
    """A torch that cannot be imported stands before the real one."""
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    done = subprocess.run(
        [sys.executable, ROOT / f"{command}.py", *flags],
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code and "torch was imported" not in done.stderr
    assert (f"python {command}.py" in done.stdout) if code == 0 else done.stderr.startswith("error: ")
