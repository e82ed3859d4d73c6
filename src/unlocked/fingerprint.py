"""What a result depends on in the code: a hash that changes when a file that made it changes.

A training depends on every module of the package that its trainer imports, directly or not, so editing
`gossip/momentum.py` retrains the gossip runs. A figure depends on the source of its own function and of what that
function uses in its module, so editing one figure redraws that figure only. Nothing is listed by hand: imports and
names are read from the source, without importing anything.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

# What carries settings and results but does not take part in computing them.
CARRIERS = ("unlocked", "unlocked.errors", "unlocked.settings", "unlocked.fingerprint", "unlocked.papers.run")


def carries(module: str) -> bool:
    """Whether a module takes no part in computing results: settings, and the artifact around the papers."""
    settings = module.startswith("unlocked.papers.") and module.endswith(("settings", ".paper"))
    return settings or module in CARRIERS or module.startswith("unlocked.artifact")


@functools.cache
def source_path(module: str) -> Path | None:
    """The file of a module of this package, None for other names. Found on disk: importing costs seconds."""
    top, *parts = module.split(".")
    if top != "unlocked":
        return None
    path = Path(__file__).parent.joinpath(*parts)
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


@functools.cache
def tree(module: str) -> ast.Module:
    """A module's syntax tree."""
    return ast.parse(text(module))


def text(module: str) -> str:
    """A module's source."""
    path = source_path(module)
    assert path is not None, module
    return path.read_text()


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Modules of this package that `module` imports when it runs, and the packages that these are in."""
    names: set[str] = set()
    for node in run_nodes(tree(module)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
    if "iter_modules(__path__)" in text(module):  # a package that imports whatever is in its folder
        names.update(f"{module}.{path.stem}" for path in Path(str(source_path(module))).parent.glob("[!_]*.py"))
    names.update(name.rpartition(".")[0] for name in [*names])
    return frozenset(name for name in names if source_path(name) is not None)


def run_nodes(root: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker reads."""
    for node in ast.iter_child_nodes(root):
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            yield node
            yield from run_nodes(node)


@functools.cache
def modules(*entries: str) -> tuple[str, ...]:
    """`entries` and every module of the package that they import, directly or not, without carriers."""
    reached: set[str] = set()
    waiting = [*entries]
    while waiting:
        module = waiting.pop()
        if module not in reached and not carries(module):
            reached.add(module)
            waiting += imports(module)
    return tuple(sorted(reached))


def digest(*texts: str) -> str:
    """16 hex digits of SHA-256."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


@functools.cache
def training(trainer: str) -> str:
    """Fingerprint of the code behind a trainer, a dotted path."""
    return digest(*(f"{name}\n{text(name)}" for name in modules(trainer.rpartition(".")[0])))


@functools.cache
def definitions(module: str) -> dict[str, ast.stmt]:
    """Top-level names of a module with the statement that defines each."""
    return {name: node for node in tree(module).body for name in defined(node)}


def defined(node: ast.stmt) -> Iterator[str]:
    """The names that a statement defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def exists(dotted: str) -> bool:
    """Whether a dotted path names something at the top of a module of this package."""
    module, _, name = dotted.rpartition(".")
    return bool(module) and source_path(module) is not None and name in definitions(module)


def with_decorators(source: str, node: ast.stmt) -> str:
    """The source of a definition, its decorators included."""
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(d.lineno for d in decorators)])
    return "\n".join(source.splitlines()[first - 1 : node.end_lineno])


@functools.cache
def origins(module: str) -> dict[str, str]:
    """Where the names come from that a module imports at its top: dotted paths."""
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in tree(module).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@functools.cache
def function(dotted: str) -> str:
    """Fingerprint of one function: its source, what it uses in its module, and the modules these import from here."""
    module, name = dotted.rsplit(".", 1)
    source, known, imported = text(module), definitions(module), origins(module)
    used: set[str] = set()
    others: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current in imported:
            origin = imported[current]
            others.add(origin if source_path(origin) else origin.rsplit(".", 1)[0])
        elif current in known and current not in used:
            used.add(current)
            waiting += [n.id for n in ast.walk(known[current]) if isinstance(n, ast.Name)]
    parts = [with_decorators(source, known[part]) for part in sorted(used)]
    upstream = modules(*sorted(other for other in others if source_path(other)))
    return digest(*parts, *map(text, upstream))
