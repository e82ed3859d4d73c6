"""The commands `unlocked plan`, `data`, `train`, `item` and so on, see `COMMANDS`. The workflow's rules call these.

A command is a function in `COMMANDS` with the names of its options. What it needs
is imported when it is called, so that `--help` costs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlocked.errors import DataError, MachineError, SettingError, StorageError, choose, named, storage_error
from unlocked.units import human_time

if TYPE_CHECKING:
    from unlocked.artifact.plan import Plan
    from unlocked.papers.run import Run
    from unlocked.report.sources import Sources

Action = Callable[[argparse.Namespace], int | None]  # a command; an exit code besides 0 where it needs one
PLAIN = (SettingError, DataError, MachineError, StorageError)  # their messages say what to do
BENCHES = ("gossip", "processes", "forward_gradient")  # scripts in `benchmarks/`
PAIRS: dict[str, Any] = {"nargs": "*", "default": [], "metavar": "KEY=VALUE"}
FLAG = {"action": "store_true"}
OPTIONS: dict[str, dict[str, Any]] = {  # arguments of `add_argument`
    "name": {"metavar": "NAME"},
    "names": {"nargs": "+", "metavar": "NAME"},
    "configs": {"nargs": "*", "type": Path, "metavar": "CONFIG", "help": "files with the settings of a run each"},
    "--scale": {"default": "quick", "help": "quick, reduced, gpu, paper (default: quick)"},
    "--set": {**PAIRS, "help": "change the scale, e.g. seeds=[0,1,2]"},
    "--runtime": {**PAIRS, "help": "how runs are executed, e.g. device=cuda"},
    "--results": {"type": Path, "default": Path("results"), "help": "folder of the run records"},
    "--figures": {"type": Path, "default": Path("paper_figures"), "help": "folder of the tables and figures"},
    "--root": {"type": Path, "default": Path("data"), "help": "folder of the data sets"},
    "--out": {"type": Path, "help": "write to this file"},
    "--change": {**PAIRS, "help": "settings other than those in the config files, e.g. optim.lr=0.1"},
    "--json": {**FLAG, "help": "print JSON"},
    "--paper": {"metavar": "KEY", "help": "of one paper only"},
    "--runs": {"nargs": "*", "metavar": "ID", "help": "runs of the plan instead of config files"},
    "--list": {"type": Path, "metavar": "FILE", "help": "runs that a call of the workflow has listed for this job"},
    "--index": {"type": Path, "help": "list the runs here when all records are there"},
    "--against": {"type": Path, "metavar": "FILE", "help": "compare the numbers with those of such a table"},
    "--power": {**FLAG, "help": "how many seeds each part needs, by the spread over the seeds that are there"},
    "--wandb": {**FLAG, "help": "the W&B reports instead, offline"},
    "--upload": {**FLAG, "help": "with --wandb: sync the offline runs, save the reports"},
    "--dry-run": {**FLAG, "help": "with --wandb: show what --upload would send"},
    "--turns": {"type": int, "default": 7, "help": "timings of every contestant (default: 7)"},
    "--width": {"type": float, "default": 1.0, "help": "of forward_gradient's net (default: 1)"},
    "--write": {**FLAG, "help": "write the files that are made so"},
    "--serve": {"type": int, "metavar": "NUMBER", "help": "draw what the jobs of a workflow ask for at this socket"},
}


def read_plan(arguments: argparse.Namespace, only: Sequence[str] | None = None) -> Plan:
    from unlocked.artifact.config import from_dotlist
    from unlocked.artifact.plan import Plan

    return Plan(arguments.scale, arguments.set, from_dotlist(arguments.runtime), only)


def read_sources(arguments: argparse.Namespace, only: Sequence[str] | None = None) -> Sources:
    from unlocked.report.sources import Sources

    return Sources(read_plan(arguments, only), arguments.results, arguments.figures)


def note_kept(sources: Sources, path: Path) -> bool:
    """Whether there is a file of earlier results, for a command that finds no record; if so, say what is shown."""
    if path.is_file():
        from unlocked.console import say
        from unlocked.report.sources import origin

        say(f"no run is recorded in {sources.results}: {path}, {origin(path)}, {len(sources.runs.runs)} runs")
    return path.is_file()


def write(path: Path | None, text: str) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def plan(arguments: argparse.Namespace) -> None:
    """List every item and run with its expected cost."""
    from unlocked.papers import PAPERS

    plan = read_plan(arguments)
    described = plan.describe(arguments.paper and choose("--paper", arguments.paper, PAPERS))
    if arguments.json:
        print(json.dumps(described, indent=1))
        return
    print(*filter(None, (f"scale {described['scale']}: {described['about']}", plan.scale.unsettled)), sep="\n")
    for item in described["items"]:
        print(f"  {item['name']:<40} {len(item['runs']):>5} runs  {item['title']}")
    print("runs")
    for run in described["runs"]:
        cost = f"{run['gradients']:>9} gradients {human_time(run['seconds']):>8} {run['memory_mb']:>7} MB"
        print(f"  {run['id']:<60} {cost}")
    total, on_gpu = described["total"], any(text.startswith("device=cuda") for text in arguments.runtime)
    cost = f"about {human_time(total['seconds'])} on one {'GPU' if on_gpu else 'core'} (to a factor of two)"
    print(f"{total['items']} items, {total['runs']} runs, {total['gradients']} gradients, {cost}")


def data(arguments: argparse.Namespace) -> None:
    """Find, check and describe data sets."""
    from unlocked.vision import data

    for name in arguments.names:
        read = data.load(name, arguments.root)
        sizes = {"train": len(read.train), "test": len(read.test), "classes": read.classes}
        text = json.dumps({"name": name, "source": read.source, "checksum": read.checksum, **sizes}, indent=1)
        write(arguments.out, f"{text}\n")
        print(text)


def wanted_runs(arguments: argparse.Namespace) -> tuple[list[Run], dict[str, list[str]]]:
    """What `train` is to train, and for every run the items that want it."""
    if arguments.configs:
        from unlocked.artifact.config import run_from_file

        return [run_from_file(path, arguments.change) for path in arguments.configs], {}
    if arguments.list:
        from unlocked.artifact.calls import read_list

        listed = list(read_list(arguments.list))
        return [run for run, _ in listed], {run.id: items for run, items in listed}
    if not arguments.runs:
        raise SettingError("train", "", "needs config files, --runs or --list")
    plan = read_plan(arguments)
    names = [choose("run", name, plan.runs) for name in arguments.runs]
    return [plan.runs[name] for name in names], {name: plan.items_of(name) for name in names}


def train(arguments: argparse.Namespace) -> None:
    """Train the runs of config files, or runs of the plan."""
    runs, items = wanted_runs(arguments)
    from unlocked import places
    from unlocked.artifact.train import train

    done = train(runs, arguments.results, items)
    if (here := places.place()) is not None and here.rank:
        return  # rank 0, whose worker this was, says what was done
    print(f"{len(done)} of {len(runs)} runs trained, {len(runs) - len(done)} already there")
    if arguments.index is not None:
        from unlocked.artifact.calls import index_text

        write(arguments.index, index_text(runs, arguments.results))


def item(arguments: argparse.Namespace) -> int:
    """Draw figures and write tables from the records."""
    from unlocked.artifact import drawing

    if arguments.serve is None and (code := drawing.ask(arguments.names)) is not None:
        return code
    plan = read_plan(arguments, arguments.names)

    def draw(names: Sequence[str]) -> int:
        return max(outcome(partial(draw_one, plan, name), arguments) for name in names)

    return draw(arguments.names) if arguments.serve is None else drawing.serve(arguments.serve, plan, draw)


def draw_one(plan: Plan, name: str, arguments: argparse.Namespace) -> None:
    """Whatever fails says which item it was."""
    from unlocked.artifact.build import build

    try:
        print(*build(plan.item(name), plan, arguments.results, arguments.figures), sep="\n")
    except Exception as error:
        error.add_note(f"{name} was not drawn")
        raise


def runs(arguments: argparse.Namespace) -> None:
    """Write the table of a scale's finished runs, or compare them with such a table."""
    from unlocked.report import runs

    sources = read_sources(arguments)
    if arguments.against:
        print(runs.compare(runs.table(sources), arguments.against))
    else:
        print(runs.write(sources, arguments.out or arguments.figures / sources.plan.scale.name / "runs.csv"))


def show_power(arguments: argparse.Namespace, plan: Plan) -> None:
    """By the seeds that are there, the pilot's among them."""
    from unlocked.report import power

    head = plan.scale.head
    if head.pilot_seeds:
        seeds = [*head.pilot_seeds, *head.seeds_of_claims]
        arguments.set = [*arguments.set, f"claim_seeds={seeds}"]
    sources = read_sources(arguments, ["claims_verdicts"])
    print(power.as_markdown(power.table(sources.plan.claims, sources.frames, head)))


def claims(arguments: argparse.Namespace) -> None:
    """Judge the papers' claims by the records that are there; without any, show those that were kept."""
    from unlocked.report import claims

    sources = read_sources(arguments, ["claims_verdicts"])
    if arguments.power:
        show_power(arguments, sources.plan)
        return
    kept = sources.frames.runs.empty and note_kept(sources, sources.verdicts)
    judged = claims.read(sources.verdicts) if kept else claims.table(sources.plan.claims, sources.frames)
    rows = json.loads(judged.to_json(orient="records"))  # pandas turns NaN into null
    print(json.dumps(rows, indent=1, ensure_ascii=False) if arguments.json else claims.as_text(judged))


def pilot(arguments: argparse.Namespace) -> None:
    """Choose learning rates by the pilot's runs that are there; writes configs/pilot/SCALE.yaml."""
    from unlocked.report import pilot

    sources = read_sources(arguments)
    path, text = pilot.write(sources.plan, sources.frames)
    print(path, text, sep="\n")


def report(arguments: argparse.Namespace) -> None:
    """Write the HTML report, or the W&B reports."""
    from unlocked.report import page, wandb

    if not arguments.wandb and (arguments.upload or arguments.dry_run):
        raise SettingError("--upload" if arguments.upload else "--dry-run", True, "is for the W&B reports: add --wandb")
    sources = read_sources(arguments)
    if not arguments.wandb:
        print(page.write(sources, arguments.out or arguments.results / sources.plan.scale.name / "report.html"))
    elif arguments.dry_run:
        print(f"would upload {wandb.listing(sources, wandb.destination(sources))}")
    else:
        print(*wandb.write(sources), sep="\n")
        for address in wandb.upload(sources) if arguments.upload else ():
            print(address)


def browse(arguments: argparse.Namespace) -> None:
    """Gather links to all offline W&B runs of a scale in one folder, by readable name, for `wandb leet`."""
    from unlocked.report import wandb

    folder = wandb.browse(read_sources(arguments))
    print(f"{len(list(folder.iterdir()))} runs in {folder}; curves in the terminal: wandb leet {folder}")


def bench(arguments: argparse.Namespace) -> int:
    """Measure the artifact's own code as ratios to a peer: gossip, processes, forward_gradient."""
    from unlocked.artifact.config import ROOT

    choose("bench", arguments.name, BENCHES)
    options = ["--turns", str(arguments.turns), "--width", str(arguments.width), *["--json"] * arguments.json]
    return subprocess.call([sys.executable, str(ROOT / "benchmarks" / "ratios.py"), arguments.name, *options])


def costs(arguments: argparse.Namespace) -> None:
    """List what every item of a finished scale took, from Snakemake's benchmark files, or the table of runs."""
    from unlocked.report import costs

    sources = read_sources(arguments)
    kept = sources.frames.runs.empty and note_kept(sources, sources.table_of_runs)
    table = costs.of_runs(sources) if kept else costs.table(sources.plan, sources.results)
    print(table.to_json(orient="index", indent=1) if arguments.json else costs.as_markdown(table))


def doctor(arguments: argparse.Namespace) -> None:
    """Say what this machine can run, what is missing, and what each scale would cost here."""
    from unlocked.artifact import doctor

    print(doctor.diagnose(arguments.root, arguments.results))


def docs(arguments: argparse.Namespace) -> None:
    """Say what README and docs tell of results that the shipped ones do not say, or renew it."""
    from unlocked.report import docs

    sources = read_sources(arguments)
    if arguments.write:
        print(*docs.write(sources), sep="\n")
    elif old := docs.stale(sources):
        raise DataError(f"stale: {', '.join(map(str, old))}; renew: unlocked docs --scale {arguments.scale} --write")


def settings(arguments: argparse.Namespace) -> None:
    """List what can be set."""
    from unlocked.artifact import settings_docs

    if not arguments.write:
        print(settings_docs.page())
        return
    for path, text in settings_docs.files().items():
        path.write_text(text)
        print(path)


PLANNED = "--scale --set --runtime"
RECORDED = f"{PLANNED} --results --figures"
COMMANDS: dict[Action, str] = {
    plan: f"{PLANNED} --paper --json",
    data: "names --root --out",
    train: f"configs {RECORDED} --change --runs --list --index",
    item: f"names {RECORDED} --serve",
    runs: f"{RECORDED} --out --against",
    claims: f"{RECORDED} --json --power",
    pilot: RECORDED,
    report: f"{RECORDED} --out --wandb --upload --dry-run",
    browse: RECORDED,
    bench: "name --turns --width --json",
    costs: f"{RECORDED} --json",
    doctor: "--results --root",
    docs: f"{RECORDED} --write",
    settings: "--write",
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="unlocked", description="From config to figure, step by step.")
    commands = top.add_subparsers(dest="command", required=True)
    for action, options in COMMANDS.items():
        own = commands.add_parser(action.__name__, help=action.__doc__, description=action.__doc__)
        own.set_defaults(action=action)
        for option in options.split():
            own.add_argument(option, **OPTIONS[option])
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    parsed = parser().parse_args(arguments)
    return outcome(parsed.action, parsed)


def outcome(action: Action, parsed: argparse.Namespace) -> int:
    """Act; an error that a person can act on is one line, an interruption ends as the shell expects."""
    try:
        return action(parsed) or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        code, line = told(error, parsed)
        print(f"unlocked: {': '.join([*getattr(error, '__notes__', ()), line])}", file=sys.stderr)
        return code


def told(error: Exception, parsed: argparse.Namespace) -> tuple[int, str]:
    """Exit code and line of an error; one that no person can act on comes after its traceback."""
    if (number := getattr(error, "number", None)) is not None:  # tracking.Interrupted, whose import costs a second
        return 128 + number, f"{error}; a checkpoint is kept and the next call continues"
    place = next(filter(None, (getattr(parsed, name, None) for name in ("index", "out", "figures"))), Path.cwd())
    if line := str((error if isinstance(error, PLAIN) else storage_error(error, place)) or ""):
        return 2, line
    traceback.print_exc()
    return 1, named(error)
