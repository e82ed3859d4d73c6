"""Items that forks of one process draw: they are there, what fails says its name, and nothing outlives the call."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from unlocked.artifact import drawing

NAMES = ("acid_table_1", "forward_gradient_taxonomy", "acid_table_4")  # the last one has no runs here
Item = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    return ["--results", str(tmp_path / "results"), "--figures", str(tmp_path / "figures"), "--set", "seeds=[0]"]


@pytest.fixture
def offered(options: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[psutil.Process]]:
    """A call that offers to draw, in a process of its own; filled with that process, its jobs find it."""
    line = [sys.executable, "-m", "unlocked", "item", *NAMES, *options, "--serve"]
    code = f"from unlocked.artifact import drawing as d; import os; d.listen({line}); print(os.environ[d.ADDRESS])"
    call = subprocess.Popen(
        [sys.executable, "-c", f"{code}; import sys; sys.stdout.flush(); sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert call.stdout is not None
    monkeypatch.setenv(drawing.ADDRESS, call.stdout.readline().strip())
    yield [psutil.Process(call.pid)]
    call.communicate()
    path = Path(os.environ[drawing.ADDRESS].rpartition(os.pathsep)[2])
    assert call.returncode or not path.exists()


@pytest.fixture
def item(start_command: Callable, options: list[str]) -> Item:
    """`unlocked item`, as a job of that call: exit code and outputs."""

    def go(*names: str) -> tuple[int, str, str]:
        process = start_command("item", *names, *options)
        out, err = process.communicate(timeout=100)
        return process.returncode, out, err

    return go


def test_items_are_drawn_by_one_process(offered: list[psutil.Process], item: Item, tmp_path: Path) -> None:
    """Nothing is started before the first is asked for; what fails leaves the others alone; all ends with the call."""
    (call,) = offered
    assert call.children() == []
    code, out, err = item(NAMES[0])
    assert (code, err) == (0, "")
    assert all(Path(line).is_file() for line in out.split())
    (server,) = call.children()
    code, out, err = item(NAMES[2], NAMES[1])
    assert code == 2
    assert err.startswith(f"unlocked: {NAMES[2]} was not drawn: record ")
    assert len(err.splitlines()) == 1
    assert str(tmp_path / "figures/quick/forward_gradient/taxonomy.md") in out.split()
    assert call.children() == [server]
    call.kill()
    server.wait(timeout=20)


def test_without_that_process_a_job_draws_itself(offered: list[psutil.Process], item: Item) -> None:
    """It may have been killed, or belong to another environment."""
    assert item(NAMES[0])[0] == 0
    offered[0].children()[0].kill()
    time.sleep(0.1)
    assert item(NAMES[1])[0] == 0
