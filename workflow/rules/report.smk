"""Snakemake's own report: one self-contained HTML file with every item, its caption and its provenance."""


rule report:
    """Write the report of everything that `all` builds."""
    input:
        rules.all.input,
    output:
        str(setup.results / setup.scale / "report.html"),
    log:
        str(setup.results / setup.scale / "logs" / "report.log"),
    localrule: True
    conda:
        "../../environment.yml"
    params:
        snakefile=workflow.main_snakefile,
        settings=road.as_options(config),
    shell:
        "python -m snakemake all --snakefile {params.snakefile:q} --report {output:q} --nolock "
        "--report-stylesheet workflow/report/style.css {params.settings} > {log:q} 2>&1"
