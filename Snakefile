"""From data to every table and figure: `snakemake --cores N`.

Targets: `all` (default), one per paper (`acid`), `claims`, one per table and figure (`acid_figure_5`), `report`,
`wandb_report`, `snakemake_report`; `pilot`, which chooses learning rates for a scale.
Settings: `--config scale=reduced device=cuda wandb=online set="seeds=[0] acid.workers=[4,16]"`; docs/settings.md.
"""

import sys
from pathlib import Path

from snakemake.utils import min_version

sys.path.insert(0, str(Path(workflow.basedir) / "src"))
from unlocked.artifact import workflow as flow

min_version("9.0")


report: "workflow/report/workflow.rst"


flow.enter_environment(sys.executable)
flow.refuse_unknown_targets(sys.argv)
setup = flow.Setup.read_or_exit(config)
plan, call = setup.plan, setup.call(workflow)
table_of_runs = str(setup.figures / plan.scale.name / "runs.csv")


wildcard_constraints:
    scale="[a-z0-9_]+",
    paper="|".join(flow.PAPERS),
    batch="[0-9a-f]{8}",


rule all:
    default_target: True
    input:
        flow.files_of_items(setup),
        table_of_runs,
    localrule: True


for group in (*flow.PAPERS, flow.CLAIMS):

    rule:
        name:
            group
        input:
            flow.files_of_items(setup, group),
        localrule: True


include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/pilot.smk"
include: "workflow/rules/items.smk"
include: "workflow/rules/report.smk"
