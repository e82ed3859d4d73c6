"""From data to every table and figure: `snakemake --cores N`.

Targets: `all` (default), one per paper (`acid`), `claims`, one per table and figure (`acid_figure_5`), `report`,
`wandb_report`, `snakemake_report`.
Settings: `--config scale=reduced device=cuda wandb=online set="seeds=[0] acid.workers=[4,16]"`.
"""

import sys
from pathlib import Path

from snakemake.utils import min_version

sys.path.insert(0, str(Path(workflow.basedir) / "src"))
from unlocked import workflow as road
from unlocked.items import build

min_version("9.0")


report: "workflow/report/workflow.rst"


road.enter_environment(sys.executable)
setup = road.Setup.read_or_exit(config)
plan = setup.plan


wildcard_constraints:
    scale="[a-z]+",
    paper="acid|forward_gradient",
    batch="[0-9a-f]{8}",


localrules:
    all,
    acid,
    claims,
    forward_gradient,


rule all:
    default_target: True
    input:
        road.files_of_items(setup),
        road.table_of_runs(setup),


rule acid:
    input:
        road.files_of_items(setup, "acid"),


rule forward_gradient:
    input:
        road.files_of_items(setup, "forward_gradient"),


rule claims:
    input:
        road.files_of_items(setup, "claims"),


include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/items.smk"
include: "workflow/rules/report.smk"
