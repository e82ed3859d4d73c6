"""`unlocked plan | data | train | item | claims | report | bench | costs | doctor`: the road's steps as commands.

The rules of the workflow call these.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unlocked import config
from unlocked.errors import DataError, MachineError, SettingError, StorageError, choose, storage_error
from unlocked.units import human_time


def runtime_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """`--runtime key=value` pairs as a mapping."""
    return dict(config.from_dotlist(arguments.runtime or []))


def read_plan(arguments: argparse.Namespace, only: Sequence[str] | None = None) -> Any:
    """The plan that the options name, or the part of it that some items need."""
    from unlocked.plan import Plan

    return Plan(arguments.scale, arguments.set or [], runtime_settings(arguments), only)


def command_plan(arguments: argparse.Namespace) -> None:
    """Print every item and run with its expected cost."""
    described = read_plan(arguments).describe(arguments.paper)
    if arguments.json:
        print(json.dumps(described, indent=1))
        return
    total = described["total"]
    print(f"scale {described['scale']}: {described['about']}")
    for item in described["items"]:
        print(f"  {item['name']:<40} {len(item['runs']):>5} runs  {item['title']}")
    print("runs")
    for run in described["runs"]:
        cost = f"{run['gradients']:>9} gradients {human_time(run['seconds']):>8} {run['memory_mb']:>7} MB"
        print(f"  {run['id']:<60} {cost}")
    print(
        f"{total['items']} items, {total['runs']} runs, {total['gradients']} gradients, about "
        f"{human_time(total['seconds'])} on one {'GPU' if arguments.gpu else 'core'} (to a factor of two)"
    )


def command_data(arguments: argparse.Namespace) -> None:
    """Find, check and describe data sets; the description can be written to a file."""
    from unlocked.vision import data

    for name in arguments.names:
        found = data.load(name, arguments.root)
        described = {
            "name": name,
            "source": found.source,
            "checksum": found.checksum,
            "train": len(found.train),
            "test": len(found.test),
            "classes": found.classes,
        }
        text = json.dumps(described, indent=1)
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(text + "\n")
        print(text)


def planned_runs(arguments: argparse.Namespace) -> tuple[list[Any], dict[str, list[str]]]:
    """The runs of one job of the plan, and for each the items that want it.

    The workflow names the job's runs and items, so that only a part of the plan is read; a person names the job.
    """
    if arguments.batch:
        plan = read_plan(arguments)
        batch = plan.batches[choose("batch", arguments.batch, plan.batches)]
        names, items = batch.runs, plan.items_of(batch)
    elif arguments.runs:
        plan = read_plan(arguments, arguments.items[:1] if arguments.items else None)
        names, items = [choose("run", name, plan.runs) for name in arguments.runs], arguments.items or []
    else:
        raise SettingError("train", "", "needs config files, or --batch, or --runs")
    return [plan.runs[name] for name in names], dict.fromkeys(names, items)


def command_train(arguments: argparse.Namespace) -> None:
    """Train the runs of config files, or those of one job of the plan; write the job's index when all are there."""
    from unlocked import train
    from unlocked.gossip.processes import places

    if arguments.configs:
        runs, items = [config.from_file(path) for path in arguments.configs], {}
    else:
        runs, items = planned_runs(arguments)
    done = train.train(runs, arguments.results, items)
    if (here := places.place()) is not None and here.rank:
        return  # rank 0, whose worker this was, says what was done
    print(f"{len(done)} of {len(runs)} runs trained, {len(runs) - len(done)} already there")
    if arguments.index:
        arguments.index.parent.mkdir(parents=True, exist_ok=True)
        arguments.index.write_text("".join(f"{config.run_id(run)}\n" for run in runs))


def command_item(arguments: argparse.Namespace) -> None:
    """Draw figures and write tables from the records."""
    from unlocked.items.build import build

    plan = read_plan(arguments, arguments.names)
    for name in arguments.names:
        for path in build(plan.item(name), plan, arguments.results, arguments.figures):
            print(path)


def command_claims(arguments: argparse.Namespace) -> None:
    """Judge the papers' claims by the records that are there; what has none is not run."""
    from unlocked import claims
    from unlocked.items.build import records_there

    plan = read_plan(arguments, ["claims_verdicts"])
    records = records_there(plan.item("claims_verdicts").runs, plan, arguments.results)
    found = claims.table(plan.claims, records)
    rows = json.loads(found.to_json(orient="records"))  # pandas turns NaN into null
    print(json.dumps(rows, indent=1, ensure_ascii=False) if arguments.json else claims.as_text(found))


def command_report(arguments: argparse.Namespace) -> None:
    """Write the HTML report, or with --wandb the definitions of the W&B reports, and upload them if asked."""
    from unlocked import report

    if not arguments.wandb and (arguments.upload or arguments.dry_run):
        raise SettingError("--upload" if arguments.upload else "--dry-run", True, "is for the W&B reports: add --wandb")
    sources = report.Sources(read_plan(arguments), arguments.results, arguments.figures)
    if not arguments.wandb:
        print(report.write(sources, arguments.out or arguments.results / sources.plan.scale.name / "report.html"))
        return
    from unlocked import wandb_report

    if arguments.dry_run:
        print(f"would upload {wandb_report.listing(sources, wandb_report.destination(sources))}")
        return
    for path in wandb_report.write(sources):
        print(path)
    for address in wandb_report.upload(sources) if arguments.upload else ():
        print(address)


def command_bench(arguments: argparse.Namespace) -> None:
    """Measure the artifact's own code."""
    from unlocked import bench

    found = bench.measure(arguments.name, bench.Options(turns=arguments.turns, width=arguments.width))
    print(json.dumps(found, indent=1) if arguments.json else bench.table(arguments.name, found))


def command_costs(arguments: argparse.Namespace) -> None:
    """Print what every item of a finished scale took, from Snakemake's benchmark files."""
    from unlocked import costs

    found = costs.table(read_plan(arguments), arguments.results)
    print(found.to_json(orient="index", indent=1) if arguments.json else costs.as_markdown(found))


def command_runs(arguments: argparse.Namespace) -> None:
    """Write the table of a scale's finished runs, or compare those that are here with such a table."""
    from unlocked import ledger

    plan = read_plan(arguments)
    if arguments.against:
        print(ledger.compare(ledger.table(plan, arguments.results), arguments.against))
        return
    print(ledger.write(plan, arguments.results, arguments.out or arguments.figures / plan.scale.name / "runs.csv"))


def command_doctor(arguments: argparse.Namespace) -> None:
    """Print what this machine can run, what is missing, and what each scale would cost here."""
    from unlocked import doctor

    found = doctor.diagnose(arguments.root, arguments.results)
    print(json.dumps(found, indent=1) if arguments.json else doctor.as_text(found))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="unlocked", description="From config to figure, step by step.")
    commands = top.add_subparsers(dest="command", required=True)

    planned = argparse.ArgumentParser(add_help=False)
    planned.add_argument("--scale", default="quick", help="quick, reduced, paper (default: quick)")
    planned.add_argument("--set", nargs="*", metavar="KEY=VALUE", help="change the scale, e.g. seeds=[0,1,2]")
    planned.add_argument("--runtime", nargs="*", metavar="KEY=VALUE", help="how runs are executed, e.g. device=cuda")
    stored = argparse.ArgumentParser(add_help=False)
    stored.add_argument("--results", type=Path, default=Path("results"), help="folder of the run records")
    stored.add_argument("--figures", type=Path, default=Path("paper_figures"), help="folder of the tables and figures")

    plan = commands.add_parser("plan", parents=[planned], help="list items and runs with their cost")
    plan.add_argument("--paper", choices=list(config.RUNS))
    plan.add_argument("--json", action="store_true")
    plan.set_defaults(action=command_plan)

    data = commands.add_parser("data", help="find and check data sets")
    data.add_argument("names", nargs="+")
    data.add_argument("--root", default="data", help="folder of the data sets")
    data.add_argument("--out", type=Path, help="write the description here")
    data.set_defaults(action=command_data)

    train = commands.add_parser("train", parents=[planned, stored], help="train runs")
    train.add_argument("configs", nargs="*", type=Path, metavar="CONFIG", help="resolved run configs")
    train.add_argument("--batch", help="a job of the plan instead of config files")
    train.add_argument("--runs", nargs="*", metavar="ID", help="runs of the plan instead of config files")
    train.add_argument("--items", nargs="*", metavar="NAME", help="items that want all of --runs")
    train.add_argument("--index", type=Path, help="list the runs here when all records are there")
    train.set_defaults(action=command_train)

    item = commands.add_parser("item", parents=[planned, stored], help="draw figures, write tables")
    item.add_argument("names", nargs="+", metavar="NAME", help="e.g. acid_figure_5")
    item.set_defaults(action=command_item)

    runs = commands.add_parser("runs", parents=[planned, stored], help="list the finished runs, or compare them")
    runs.add_argument("--out", type=Path, help="write the table here (default: runs.csv beside the scale's figures)")
    runs.add_argument("--against", type=Path, metavar="FILE", help="compare the numbers with those of such a table")
    runs.set_defaults(action=command_runs)

    claims = commands.add_parser("claims", parents=[planned, stored], help="judge the papers' claims by the records")
    claims.add_argument("--json", action="store_true")
    claims.set_defaults(action=command_claims)

    report = commands.add_parser("report", parents=[planned, stored], help="write the HTML report, the W&B reports")
    report.add_argument("--out", type=Path, help="write the HTML report here")
    report.add_argument("--wandb", action="store_true", help="the W&B reports instead, offline")
    report.add_argument("--upload", action="store_true", help="with --wandb: sync the offline runs, save the reports")
    report.add_argument("--dry-run", action="store_true", help="with --wandb: show what --upload would send")
    report.set_defaults(action=command_report)

    bench = commands.add_parser("bench", help="measure the artifact's own code, as ratios to a peer")
    bench.add_argument("name", metavar="NAME", help="gossip, processes, forward_gradient")
    bench.add_argument("--turns", type=int, default=7, help="timings of every contestant (default: 7)")
    bench.add_argument("--width", type=float, default=1.0, help="of forward_gradient's net (default: 1)")
    bench.add_argument("--json", action="store_true")
    bench.set_defaults(action=command_bench)

    costs = commands.add_parser("costs", parents=[planned, stored], help="what every item of a finished scale took")
    costs.add_argument("--json", action="store_true")
    costs.set_defaults(action=command_costs)

    doctor = commands.add_parser("doctor", parents=[stored], help="what this machine can run, and at what cost")
    doctor.add_argument("--root", type=Path, default=Path("data"), help="folder of the data sets")
    doctor.add_argument("--json", action="store_true")
    doctor.set_defaults(action=command_doctor)
    return top


def written_by(parsed: argparse.Namespace) -> Path:
    """The file or folder that a command writes, to name it when that fails."""
    found = (getattr(parsed, name, None) for name in ("index", "out", "figures"))
    return next((path for path in found if path), Path.cwd())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; an error that a person can act on is one line, an interruption ends as the shell expects."""
    parsed = parser().parse_args(arguments)
    parsed.gpu = any(str(text).startswith("device=cuda") for text in getattr(parsed, "runtime", None) or [])
    try:
        parsed.action(parsed)
    except (SettingError, DataError, MachineError, StorageError) as error:
        print(f"unlocked: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        number = getattr(error, "number", None)  # of tracking.Interrupted, which is not imported: it costs a second
        if number is None and (failed := storage_error(error, written_by(parsed))) is not None:
            print(f"unlocked: {failed}", file=sys.stderr)
            return 2
        if number is None:
            raise
        print(f"unlocked: {error}; a checkpoint is kept and the next call continues", file=sys.stderr)
        return 128 + number
    return 0
