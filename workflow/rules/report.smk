"""The table of all runs, and reports of everything that `all` builds: our HTML page, W&B's, and Snakemake's own."""

import json

CODE, PAGE = flow.config.ROOT / "src/unlocked/report", flow.config.ROOT / "workflow/report"
REPORT_FILES = [*sorted(CODE.glob("*.py")), *(PAGE / name for name in ("page.html.j2", "page.css", "page.js"))]


rule runs:
    """List every run with its main numbers, its cost, what it was made of, and a digest of its history."""
    input:
        flow.files_of_items(setup),
        code=CODE / "runs.py",
    output:
        table_of_runs,
    log:
        str(setup.results / plan.scale.name / "logs" / "runs.log"),
    localrule: True
    conda:
        "../../environment.yml"
    params:
        options=flow.as_it_is(setup.options("--figures", setup.figures)),
    shell:
        "python -m unlocked runs {params.options} --out {output:q} > {log:q} 2>&1"


rule report:
    """Write the HTML report: one file with the verdicts, every item and its provenance."""
    input:
        rules.all.input,
        code=REPORT_FILES,
    output:
        str(setup.results / plan.scale.name / "report.html"),
    log:
        str(setup.results / plan.scale.name / "logs" / "report.log"),
    localrule: True
    conda:
        "../../environment.yml"
    params:
        options=flow.as_it_is(setup.options("--figures", setup.figures)),
    shell:
        "python -m unlocked report {params.options} --out {output:q} > {log:q} 2>&1"


rule wandb_report:
    """Write the W&B reports' definitions; with --config wandb_upload=true and a key, sync the runs and save the reports."""
    input:
        rules.all.input,
        code=REPORT_FILES,
    output:
        expand(str(setup.results / plan.scale.name / "wandb_report_{paper}.json"), paper=flow.PAPERS),
    log:
        str(setup.results / plan.scale.name / "logs" / "wandb_report.log"),
    localrule: True
    conda:
        "../../environment.yml"
    params:
        options=flow.as_it_is(setup.options("--figures", setup.figures)),
        upload="--upload" if setup.wandb_upload else "",
    shell:
        "python -m unlocked report --wandb {params.upload} {params.options} 2>&1 | tee {log:q}"


rule snakemake_report:
    """Write Snakemake's report: the items with their captions, the rules, and how long each job took."""
    input:
        rules.all.input,
    output:
        str(setup.results / plan.scale.name / "snakemake_report.html"),
    log:
        str(setup.results / plan.scale.name / "logs" / "snakemake_report.log"),
    localrule: True
    conda:
        "../../environment.yml"
    params:
        snakefile=workflow.main_snakefile,
        settings=flow.as_it_is([f"{key}={json.dumps(value)}" for key, value in config.items()]),
    shell:
        "python -m snakemake all --snakefile {params.snakefile:q} --report {output:q} --nolock "
        "--report-stylesheet workflow/report/style.css --config {params.settings:q} > {log:q} 2>&1"
