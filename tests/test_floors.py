"""How the package is built: imports only go down, methods stand alone, functions and files stay small, types agree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles

import pytest

from unlocked import fingerprint
from unlocked.artifact.config import ROOT
from unlocked.papers import PAPERS

SOURCE = ROOT / "src" / "unlocked"
FILES = sorted(SOURCE.rglob("*.py"))
# From the ground up; of several prefixes that fit a module the longest counts. Those of one floor may import each other
# if their first names are the same.
FLOORS = {
    "": 0,  # errors, settings, seeding and the like
    "gossip": 1,
    "forward_gradient": 1,
    "vision": 1,
    "items": 2,
    "papers": 3,
    "artifact": 4,
    "record": 4,  # the public door to artifact.record
    "report": 5,
    "cli": 6,
    "__main__": 6,
}
APART = {"gossip", "forward_gradient"}  # the methods, which do not know each other


def module_of(path: Path) -> str:
    """`unlocked.gossip.clock`; of a package's `__init__` that of the package."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor(module: str) -> tuple[int, str]:
    """A module's floor, and the first part of its name."""
    name = module.removeprefix("unlocked").lstrip(".")
    fitting = [prefix for prefix in FLOORS if f"{name}.".startswith(f"{prefix}." if prefix else "")]
    return FLOORS[max(fitting, key=len)], name.partition(".")[0]


MODULES = {module_of(path): path for path in FILES}
IMPORTED = {module: fingerprint.imports(module) - {"unlocked", module} for module in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    """Also those inside functions; the two methods do not import each other."""
    own, first = floor(module)
    for other in IMPORTED[module]:
        theirs, name = floor(other)
        assert theirs <= own, f"{module} imports {other}, which stands on a higher floor"
        assert {first, name} != APART, f"{module} imports {other}"


def test_there_are_no_circles() -> None:
    """No module imports itself through others. That a package re-exports its modules is no circle of theirs."""
    packages = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    done: set[str] = set()

    def walk(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        for other in sorted(IMPORTED[module] - packages if module not in done else ()):
            walk(other, (*above, module))
        done.add(module)

    for module in MODULES.keys() - packages:
        walk(module, ())


METHODS = "omegaconf pandas matplotlib snakemake wandb"
HELP = "torch scipy networkx pandas omegaconf numpy matplotlib"
USE = "import {0} as method; [getattr(method, name) for name in method.__all__]"
CALL = "from unlocked.cli import main\ntry: main({0})\nexcept SystemExit: pass"


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        (USE.format("unlocked.gossip"), METHODS),
        (USE.format("unlocked.forward_gradient"), METHODS),
        (CALL.format(["--help"]), HELP),
        (CALL.format(["train", "--help"]), HELP),
    ],
)
def test_what_loads_nothing_heavy(code: str, heavy: str) -> None:
    """The methods, whatever of them is used, need nothing of the artifact, and `--help` no library at all."""
    code = f"import sys\n{code}\nloaded = {set(heavy.split())} & set(sys.modules)\nassert not loaded, loaded"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_functions_are_small() -> None:
    """Half of them have 7 lines or fewer, nine of ten 18."""
    lengths = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                lengths[f"{path.name}:{node.lineno} {node.name}"] = (node.end_lineno or 0) - node.lineno + 1
    assert median(lengths.values()) <= 7
    assert quantiles(lengths.values(), n=10)[-1] <= 18, sorted(lengths.items(), key=lambda one: -one[1])[:20]


def test_files_are_small() -> None:
    """None has more than 400 lines."""
    lengths = {str(path.relative_to(SOURCE)): len(path.read_text().splitlines()) for path in FILES}
    assert not {name: length for name, length in lengths.items() if length > 400}


FORBIDDEN = re.compile(r"\b(roads?|twins?|books?|obituar(y|ies)|lobb(y|ies))\b", re.IGNORECASE)


def test_words() -> None:
    """Terms that only this project once had are not used."""
    lines = ((path, *line) for path in FILES for line in enumerate(path.read_text().splitlines(), 1))
    places = [f"{path}:{number}: {line}" for path, number, line in lines if FORBIDDEN.search(line.replace("_", " "))]
    assert not places, "\n".join(places)


def test_the_artifact_knows_no_paper() -> None:
    """What surrounds the papers, and the rules of the workflow, name none of them."""
    rules = [ROOT / "Snakefile", *(ROOT / "workflow" / "rules").glob("*.smk")]
    for path in [*(SOURCE / "artifact").glob("*.py"), *rules]:
        text = re.sub(r'""".*?"""|#.*', "", path.read_text(), flags=re.DOTALL)  # examples in docstrings are fine
        assert not re.search(rf"""["']({"|".join(PAPERS)})["']|papers\.({"|".join(PAPERS)})\b""", text), path


@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed")
def test_types_agree() -> None:
    """With the settings in pyproject.toml."""
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
