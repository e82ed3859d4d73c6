"""Learning rates by method, chosen by runs whose seeds no claim uses. Run it again while it says that it is not settled."""


rule pilot:
    """Train the grid's runs and write which rate each method gets, for this scale to read."""
    input:
        lambda w: call.indexes_of(call.wanted_for("pilot")),
    output:
        # the scale reads it at every start: it must be there while the rule runs, so it is no file of Snakemake's
        touch(str(setup.results / plan.scale.name / "pilot.done")),
    log:
        str(setup.results / plan.scale.name / "logs" / "pilot.log"),
    localrule: True
    conda:
        "../../environment.yml"
    params:
        options=flow.as_it_is(setup.options("--figures", setup.figures)),
    shell:
        "python -m unlocked pilot {params.options} 2>&1 | tee {log:q}"
