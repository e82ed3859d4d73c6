"""Do the tests notice? Small faults put into the code one at a time, and the tests of that file run on each.

    python benchmarks/mutations.py --count 300 --out mutations.jsonl        # goes on where it was stopped
    python benchmarks/mutations.py --only gossip/ --count 80 --out gossip.jsonl

Every fault is one comparison, operation, constant, condition, returned value or statement that is something else. The
sample is drawn from a seed, so many of each file as it has places for a fault. A fault is noticed when a test fails, or
when the tests do not come to an end. The code is mutated in a copy; big packages are imported once, before forking.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
LOADED = ("torch", "torchvision", "pandas", "scipy.stats", "networkx", "hypothesis", "omegaconf", "jsonschema")
FORWARD = "tests/forward_gradient/test_"
UNBIASED = f" --deselect={FORWARD}estimator.py::test_random_guesses_are_unbiased"  # a minute
ESTIMATES = " ".join(f"{FORWARD}{name}.py" for name in ("estimate_reference", "golden", "estimator", "measures"))
ESTIMATES += UNBIASED
SLOW = (
    "every_part_finds_its_runs", "the_items_show_every_part", "claims_can_be_judged_before_anything_is_trained",
    "the_command_prints_table_and_json", "the_readme_shows_the_verdicts_that_are_kept",
)  # fmt: skip
CLAIMS = "tests/report/test_claims.py"
CLAIMS += "".join(f" --deselect={CLAIMS}::test_{name}" for name in SLOW)
TESTS = {  # of each file, those that should notice first
    "gossip/momentum": "tests/gossip/test_momentum.py tests/gossip/test_simulator.py",
    "gossip/schedule": "tests/gossip/test_schedule.py tests/gossip/test_availability.py tests/gossip/test_simulator.py",
    "gossip/topology": "tests/gossip/test_topology.py",
    "gossip/reference": "tests/gossip/test_reference.py tests/gossip/test_simulator.py",
    "optim": "tests/test_optim.py tests/gossip/test_simulator.py",
    "forward_gradient/projection": ESTIMATES,
    "forward_gradient/spaces": f"{FORWARD}estimate_reference.py {FORWARD}forward_mode.py",
    "forward_gradient/per_sample": f"{FORWARD}per_sample.py",
    "forward_gradient/estimator": ESTIMATES,
    "forward_gradient/guesses": f"{FORWARD}method.py {FORWARD}estimate_reference.py",
    "report/claims": CLAIMS,
    "report/statistics": CLAIMS,
    "artifact/record": "tests/artifact/test_record.py",
    "artifact/loop": "tests/artifact/test_loop.py",
    "artifact/folders": "tests/artifact/test_record.py tests/artifact/test_loop.py tests/artifact/test_train.py",
    "vision/partition": "tests/vision/test_partition.py",
}
SWAPS = [(ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn)]
SWAPS += [(ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.BitAnd, ast.BitOr), (ast.And, ast.Or)]
OTHER = dict(SWAPS) | {b: a for a, b in SWAPS} | {ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.Pow: ast.Mult}


def faults(node: ast.AST) -> Iterator[str]:
    """Sources of what could stand in place of a node."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in OTHER:
        yield ast.unparse(ast.Compare(node.left, [OTHER[type(node.ops[0])](), *node.ops[1:]], node.comparators))
    elif isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in OTHER:
        yield ast.unparse(type(node)(**vars(node) | {"op": OTHER[type(node.op)]()}))
    elif isinstance(node, ast.UnaryOp):
        yield ast.unparse(node.operand)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        yield str(not node.value) if isinstance(node.value, bool) else f"{node.value} + 1"
    elif isinstance(node, (ast.If, ast.IfExp)):
        yield f"not ({ast.unparse(node.test)})"
    elif isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        yield "return None"
    elif isinstance(node, (ast.AugAssign, ast.Expr, ast.Raise)):
        yield "pass"


def mutants(source: str) -> Iterator[tuple[int, str, str, str]]:
    """(line, what stood there, what stands there, whole source) of every fault; types and texts stay as they are."""
    lines = source.encode().splitlines(keepends=True)
    starts = [0, *np.cumsum([len(line) for line in lines]).tolist()]
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop(0)
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns", "decorator_list", "exc") and not isinstance(node, ast.JoinedStr):
                waiting += [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, ast.AST)]
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        place = node.test if isinstance(node, (ast.If, ast.IfExp)) else node
        for text in faults(node):
            first = starts[place.lineno - 1] + place.col_offset
            last = starts[place.end_lineno - 1] + place.end_col_offset
            new = text if isinstance(node, ast.stmt) and place is node else f"({text})"
            code = source.encode()[:first] + new.encode() + source.encode()[last:]
            yield place.lineno, source.encode()[first:last].decode(), text, code.decode()


def outcome(root: Path, tests: str, limit: float | None) -> str:
    """What the tests do in the copy, in a process that is forked from this one: pass, fail, or hang."""
    process = get_context("fork").Process(target=run_tests, args=(root, tests.split()))
    process.start()
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        return "hang"
    return "fail" if process.exitcode else "pass"


def run_tests(root: Path, tests: list[str]) -> None:
    os.chdir(root)
    os.environ |= {"PYTHONPATH": str(root / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.path[0] = str(root / "src")  # not the folder of this script, whose files are called as packages are
    with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        import pytest

        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not faults", *tests])
    os._exit(int(code))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of files below src/unlocked")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    files = [name for name in TESTS if name.startswith(tuple(options.only))]
    known = {name: list(mutants((ROOT / f"src/unlocked/{name}.py").read_text())) for name in files}
    everything = [(name, number) for name in files for number in range(len(known[name]))]
    draws = np.random.default_rng(0).permutation(len(everything))[: options.count]
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    told = {(one["file"], one["number"]) for one in done}
    for package in LOADED:
        importlib.import_module(package)
    with tempfile.TemporaryDirectory() as folder, options.out.open("a") as out:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "results", "paper_figures"))
        limits: dict[str, float] = {}
        for name, number in sorted(everything[k] for k in draws):
            if (name, number) in told:
                continue
            path = copy / f"src/unlocked/{name}.py"
            if name not in limits:
                began = time.perf_counter()
                assert outcome(copy, TESTS[name], None) == "pass", f"the tests of {name} fail without a fault"
                limits[name] = 30 + 3 * (time.perf_counter() - began)
            line, before, after, code = known[name][number]
            whole = path.read_text()
            path.write_text(code)
            one = {"file": name, "number": number, "line": line, "before": before, "after": after}
            one["tests"] = outcome(copy, TESTS[name], limits[name])
            path.write_text(whole)
            done.append(one)
            print(json.dumps(one), file=out, flush=True)
    counts = Counter((one["file"], one["tests"]) for one in done)
    for name in files:
        noticed = counts[name, "fail"] + counts[name, "hang"]
        print(f"{name:<32} {noticed:>4} noticed, {counts[name, 'pass']:>3} not, of {len(known[name])} places")
    for one in done:
        if one["tests"] == "pass":
            print(f"{one['file']}.py:{one['line']}: {one['before']!r} -> {one['after']!r}")


if __name__ == "__main__":
    main()
