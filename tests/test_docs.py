"""README, docs and notebook: short, true to the shipped results; every command, option, link and snippet works."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from unlocked import cli
from unlocked.artifact import workflow
from unlocked.artifact.config import ROOT
from unlocked.artifact.plan import Plan
from unlocked.report import docs
from unlocked.report.sources import Sources

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
PROGRAM = re.compile(r"(?:\.venv/bin/)?(unlocked|snakemake|wandb|pre-commit|pip)|python3 reproduce\.py")
EXAMPLES = {"ID": "x", "KEY=VALUE": "a=b", "FILE": "f", "NAME": "x", "CONFIG...": "f", "CONFIG": "f"}


def blocks(page: Path, *languages: str) -> list[str]:
    """The code blocks of a page in these languages, "" for none."""
    return [text for language, text in BLOCK.findall(page.read_text()) if language in languages]


def commands(page: Path) -> list[str]:
    """Lines of shell blocks, comments cut off, and what stands in backticks and begins as a command does."""
    lines = [line.strip() for text in blocks(page, "", "bash") for line in text.replace("\\\n", " ").splitlines()]
    lines += [text.replace("\n", " ") for text in re.findall(r"`([^`]+)`", BLOCK.sub("", page.read_text()))]
    parts = [part.split(" #")[0].split("|")[0].strip() for line in lines for part in line.split("&&")]
    parts = [re.sub(r"^(\w+=\S+ )+", "", part) for part in parts]
    return [part for part in parts if " " in part and PROGRAM.match(part)]


CASES = [(page.name, line) for page in PAGES for line in dict.fromkeys(commands(page))]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan("quick")


@pytest.mark.parametrize("line", [line for _, line in CASES], ids=[": ".join(case) for case in CASES])
def test_commands(line: str, plan: Plan) -> None:
    """Targets, options and settings exist. What a command does is tested where its code is."""
    words = shlex.split(re.sub(r"<[^>]*>|\.\.\.|\$\w+", "x", line))
    words = [EXAMPLES.get(word, word) for word in words]
    program, rest = Path(words[0]).name, words[1:]
    if program == "unlocked" and rest != ["--help"]:
        assert rest[0] in {action.__name__ for action in cli.COMMANDS}
        if len(rest) > 1:  # otherwise a command that is named in a sentence
            cli.parser().parse_args(rest)  # ends the test if it cannot
    elif program == "snakemake" or words[:2] == ["python3", "reproduce.py"]:
        check_workflow(rest[program == "python3" :], plan)
    elif program == "wandb":
        assert rest[0] in ("leet", "sync", "sweep", "agent"), line


def check_workflow(words: list[str], plan: Plan) -> None:
    """Items, rules and files that are named, and what follows `--config`."""
    rules = set(
        re.findall(r"^rule (\w+)", "".join(map(Path.read_text, ROOT.rglob("**/*.smk"))) + SNAKEFILE, re.MULTILINE)
    )
    known = {"x", "test", "-n", "--version", *rules, *plan.items, *(item.paper for item in plan.items.values())}
    options = {"--profile": 1, "--cores": 1, "--snakefile": 1, "--set-resources": 1, "-m": 1, "--forcerun": 1}
    while words:
        word, *words = words
        if word == "--config":
            values = dict(pair.split("=", 1) for pair in words)
            workflow.Setup.read_or_exit({key: value for key, value in values.items() if key != "key"})
            return
        if word in options:
            words = words[options[word] :]
            continue
        assert word in known or (ROOT / word).exists(), word


SNAKEFILE = (ROOT / "Snakefile").read_text()


def test_enough_commands_were_found() -> None:
    assert len(CASES) > 40
    assert {"README.md", "tracking.md", "cluster.md", "install.md"} <= {page for page, _ in CASES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_snippets(page: Path) -> None:
    """A file that is linked exists, its heading too; Python in the page can be parsed; a path in code is there."""
    text = BLOCK.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("http"):
            continue
        name, _, heading = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE) if heading else []
        assert not heading or heading in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
    for snippet in blocks(page, "python"):
        ast.parse(snippet)
    for path in re.findall(r"`((?:src|configs|docs|examples|tests|workflow|benchmarks|profiles)/[\w./-]+\w)`", text):
        assert (ROOT / path).exists(), path


def test_the_readme_is_short() -> None:
    """One screen for the point: 150 lines, 1000 words, the picture and the first command before any table."""
    assert len(README.splitlines()) <= 150
    assert len(README.split()) <= 1000
    places = [
        README.index(text) for text in ("docs/overview.png", "python3 reproduce.py acid_figure_1", "<!-- claims -->")
    ]
    assert places == sorted(places)
    assert places[1] < 2000


def test_what_is_said_of_results_is_current() -> None:
    """Tables and the picture are made from the shipped results: `unlocked docs --scale reduced --write`."""
    assert docs.stale(Sources(Plan("reduced"), ROOT / "results", ROOT / "paper_figures")) == []


def test_what_is_stale_is_found(tmp_path: Path) -> None:
    """Every page whose table says something else; the sums; the picture, which is of the same files."""
    sources = Sources(Plan("reduced"), ROOT / "results", ROOT / "paper_figures")
    verdicts = sources.verdicts.read_text().replace("supported", "not run")
    for name in ("claims/verdicts.csv", "runs.csv", *docs.DRAWN_FROM):
        path = tmp_path / "reduced" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((ROOT / "paper_figures" / "reduced" / name).read_bytes())
    (tmp_path / "reduced" / "claims" / "verdicts.csv").write_text(verdicts)
    changed = Sources(sources.plan, sources.results, tmp_path)
    assert [path.name for path in docs.stale(changed)] == ["SHA256SUMS", "README.md", "results.md", "overview.png"]


@pytest.mark.slow
def test_the_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells as they stand, one after the other, draw both figures; without Jupyter, whose display is replaced."""
    shown: list[str] = []
    parent, display = ModuleType("IPython"), ModuleType("IPython.display")
    vars(parent).update(version_info=(8, 24))  # matplotlib looks at it
    vars(display).update(Image=Path, Markdown=str, display=lambda path: shown.append(path.suffix))
    monkeypatch.setitem(sys.modules, "IPython", parent)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.chdir(ROOT)
    notebook = json.loads((ROOT / "notebooks" / "one_figure_of_each_paper.ipynb").read_text())
    names: dict[str, object] = {"__name__": "notebook"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "notebook", "exec"), names)
    assert shown == [".png", ".png"]
    assert all(path.stat().st_size > 10_000 for path in names["acid"] if path.suffix == ".png")
    assert not any(cell.get("outputs") for cell in notebook["cells"])  # kept without what it printed


def test_images(tmp_path: Path) -> None:
    """Docker and Apptainer run the README's command: what the environment is made from has been copied before, the line
    that makes it runs there, and their Python is new enough."""
    text = (ROOT / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*) \S+$", text.split("RUN python3")[0], re.MULTILINE):
        for name in line.split():
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, tmp_path / name)
    for name in ("requirements.lock", "pyproject.toml", "README.md", "src/unlocked/__init__.py"):
        assert (tmp_path / name).is_file()
    (make,) = re.findall(r'^RUN python3 -c "(.*)"$', text, re.MULTILINE)
    assert f'python3 -c "{make}"' in (ROOT / "unlocked.def").read_text()
    stamp = "import reproduce; reproduce.VENV.mkdir(); reproduce.PYTHON = reproduce.ROOT / 'reproduce.py'; "
    stamp += "reproduce.STAMP.write_text(reproduce.wanted()); "  # an environment is there already
    subprocess.run([sys.executable, "-c", stamp + make], cwd=tmp_path, check=True)
    assert re.search(r"^FROM python:3\.1[1-9]-slim$", text, re.MULTILINE)
    assert 'ENTRYPOINT ["python3", "reproduce.py"]' in text
    definition = (ROOT / "unlocked.def").read_text()
    assert re.search(r"^From: python:3\.1[1-9]-slim$", definition, re.MULTILINE)
    assert "snakemake --cores all --snakefile /unlocked/Snakefile" in definition


def test_versions_agree() -> None:
    """The package, its citation and the newest entry of the changelog; the formatters of the hooks and of the lock."""
    from unlocked import __version__

    hooks = dict(re.findall(r"/(ruff|snakefmt)\S*\n +rev: v(\S+)", (ROOT / ".pre-commit-config.yaml").read_text()))
    assert hooks == dict(re.findall(r"^(ruff|snakefmt)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert re.search(rf"^version: {re.escape(__version__)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).group(1) == __version__
