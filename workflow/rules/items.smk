"""Tables and figures: pure functions of the run records, one rule per item so that each has its name."""

for item in plan.items.values():

    rule:
        name:
            item.name
        input:
            flow.waits_for(call, item),
        output:
            **flow.outputs(setup, item, report),
        log:
            str(setup.results / plan.scale.name / item.paper / "logs" / f"{item.id}.log"),
        benchmark:
            str(setup.results / plan.scale.name / item.paper / "benchmarks" / f"{item.id}.tsv")
        localrule: True
        conda:
            "../../environment.yml"
        threads: 1
        params:
            title=flow.as_it_is(item.title),
            caption=flow.as_it_is(plan.caption(item)),
            item=item.name,
            options=flow.as_it_is(setup.options("--figures", setup.figures, runtime=False)),
            code=flow.item_code(item),
        shell:
            "python -m unlocked item {params.item} {params.options} " "> {log:q} 2>&1"
