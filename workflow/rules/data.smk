"""Data sets are found and checked once, before anything is trained."""


rule data:
    """Find a data set, check its files, and write down where it came from."""
    output:
        ensure(str(setup.results / "data" / "{name}.json"), non_empty=True),
    log:
        str(setup.results / "logs" / "data" / "{name}.log"),
    benchmark:
        str(setup.results / "benchmarks" / "data" / "{name}.tsv")
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        root=flow.as_it_is(plan.runtime.get("data_root", "data")),
    shell:
        "python -m unlocked data {wildcards.name} --root {params.root:q} --out {output:q} > {log:q} 2>&1"
