"""Tables and figures: pure functions of the run records, one rule per item so that each has its name."""

for item in plan.items.values():

    rule:
        name:
            item.name
        input:
            road.indexes_of(setup, item),
        output:
            **road.outputs(setup, item, report),
        log:
            str(setup.results / setup.scale / item.paper / "logs" / f"{item.id}.log"),
        benchmark:
            str(setup.results / setup.scale / item.paper / "benchmarks" / f"{item.id}.tsv")
        localrule: True
        conda:
            "../../environment.yml"
        threads: 1
        params:
            item=item.name,
            options=setup.item_options,
            code=road.item_code(item),
            title=build.title_of(item),
            caption=build.caption_of(item, plan),
        shell:
            "python -m unlocked item {params.item} {params.options} " "> {log:q} 2>&1"
