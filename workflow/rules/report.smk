"""The table of all runs, and reports of everything that `all` builds: our HTML page, W&B's, and Snakemake's own."""

REPORT_FILES = [
    str(road.config.ROOT / path)
    for path in (
        "src/unlocked/report.py",
        "src/unlocked/wandb_report.py",
        "workflow/report/page.html.j2",
        "workflow/report/page.css",
    )
]


rule runs:
    """List every run with its main numbers, its cost, what it was made of, and a digest of its history."""
    input:
        road.files_of_items(setup),
        code=road.config.ROOT / "src/unlocked/ledger.py",
    output:
        road.table_of_runs(setup),
    log:
        str(setup.results / setup.scale / "logs" / "runs.log"),
    localrule: True
    conda:
        "../../environment.yml"
    params:
        options=setup.item_options,
    shell:
        "python -m unlocked runs {params.options} --out {output:q} > {log:q} 2>&1"


rule report:
    """Write the HTML report: one file with the verdicts, every item and its provenance."""
    input:
        rules.all.input,
        code=REPORT_FILES,
    output:
        str(setup.results / setup.scale / "report.html"),
    log:
        str(setup.results / setup.scale / "logs" / "report.log"),
    localrule: True
    conda:
        "../../environment.yml"
    params:
        options=setup.item_options,
    shell:
        "python -m unlocked report {params.options} --out {output:q} > {log:q} 2>&1"


rule wandb_report:
    """Write the W&B reports' definitions; with --config wandb_upload=true and a key, sync the runs and save the reports."""
    input:
        rules.all.input,
        code=REPORT_FILES,
    output:
        expand(str(setup.results / setup.scale / "wandb_report_{paper}.json"), paper=road.PAPERS),
    log:
        str(setup.results / setup.scale / "logs" / "wandb_report.log"),
    localrule: True
    conda:
        "../../environment.yml"
    params:
        options=setup.item_options,
        upload="--upload" if str(config.get("wandb_upload")).lower() == "true" else "",
    shell:
        "python -m unlocked report --wandb {params.upload} {params.options} 2>&1 | tee {log:q}"


rule snakemake_report:
    """Write Snakemake's report: the items with their captions, the rules, and how long each job took."""
    input:
        rules.all.input,
    output:
        str(setup.results / setup.scale / "snakemake_report.html"),
    log:
        str(setup.results / setup.scale / "logs" / "snakemake_report.log"),
    localrule: True
    conda:
        "../../environment.yml"
    params:
        snakefile=workflow.main_snakefile,
        settings=road.as_options(config),
    shell:
        "python -m snakemake all --snakefile {params.snakefile:q} --report {output:q} --nolock "
        "--report-stylesheet workflow/report/style.css {params.settings} > {log:q} 2>&1"
