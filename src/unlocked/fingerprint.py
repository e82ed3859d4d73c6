"""What a result depends on in the code: a hash that changes when a file that made it changes.

Beside the plan. Training depends on every module of the package that its engine imports, directly or not, so editing
`gossip/momentum.py` retrains the gossip runs. A figure depends on the source of its own function and of what that
function uses in its module, so editing one figure redraws that figure only. Nothing is listed by hand: imports and
names are read from the source.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

# Modules that carry settings and results but do not take part in computing them.
INFRASTRUCTURE = {"unlocked", "unlocked.config", "unlocked.errors", "unlocked.record", "unlocked.tracking"}


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
def imports(module: str) -> frozenset[str]:
    """Modules of this package that `module` imports, anywhere in its source."""
    path = source_path(module)
    assert path is not None
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(name for name in found if source_path(name) is not None)


@functools.cache
def modules(*entries: str) -> tuple[str, ...]:
    """`entries` and every module of the package that they import, directly or not, without infrastructure."""
    reached: set[str] = set()
    waiting = [*entries]
    while waiting:
        module = waiting.pop()
        if module not in reached and module not in INFRASTRUCTURE:
            reached.add(module)
            waiting += imports(module)
    return tuple(sorted(reached))


def digest(*texts: str) -> str:
    """16 hex digits of SHA-256."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


@functools.cache
def training(entry: str) -> str:
    """Fingerprint of the code behind a training whose engine is the module `entry`."""
    return digest(*(f"{name}\n{Path(str(source_path(name))).read_text()}" for name in modules(entry)))


def definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    """Top-level names of a module with the statement that defines each."""
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    found[target.id] = node
    return found


def with_decorators(text: str, node: ast.stmt) -> str:
    """The source of a definition, its decorators included."""
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(d.lineno for d in decorators)])
    return "\n".join(text.splitlines()[first - 1 : node.end_lineno])


def function(dotted: str) -> str:
    """Fingerprint of one function: its source, what it uses in its module, and the modules these import from here."""
    module, name = dotted.rsplit(".", 1)
    path = source_path(module)
    assert path is not None, dotted
    text = path.read_text()
    tree = ast.parse(text)
    known = definitions(tree)
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    used, others, waiting = set(), set(), [name]
    while waiting:
        current = waiting.pop()
        if current in imported:
            origin = imported[current]
            others.add(origin if source_path(origin) else origin.rsplit(".", 1)[0])
        elif current in known and current not in used:
            used.add(current)
            waiting += [n.id for n in ast.walk(known[current]) if isinstance(n, ast.Name)]
    texts = [with_decorators(text, known[used_name]) for used_name in sorted(used)]
    upstream = modules(*sorted(other for other in others if source_path(other)))
    return digest(*texts, *(Path(str(source_path(other))).read_text() for other in upstream))
