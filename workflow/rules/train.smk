"""Training: one rule, one job per batch of runs."""

road.drop_stale_indexes(setup)


onstart:
    road.check_folders(setup)


onerror:
    road.explain_failure(setup)


rule train:
    """Train a batch of runs in one process; runs whose record holds are not trained again."""
    input:
        lambda w: road.data_files(setup, plan.batches[w.batch]),
    output:
        str(setup.results / "{scale}" / "{paper}" / "batches" / "{batch}.txt"),
    log:
        str(setup.results / "{scale}" / "{paper}" / "logs" / "{batch}.log"),
    benchmark:
        str(setup.results / "{scale}" / "{paper}" / "benchmarks" / "{batch}.tsv")
    conda:
        "../../environment.yml"
    threads: lambda w: road.resources_of(setup, plan.batches[w.batch]).threads
    resources:
        mem_mb=lambda w, attempt: road.resources_of(setup, plan.batches[w.batch], attempt).mem_mb,
        runtime=lambda w, attempt: road.resources_of(setup, plan.batches[w.batch], attempt).runtime,
        gpu=lambda w: road.resources_of(setup, plan.batches[w.batch]).gpu,
    params:
        own_threads=dict(setup.runtime).get("threads", 1),
        options=setup.options,
        runs=lambda w: plan.batches[w.batch].runs,
        wanted=lambda w: plan.items_of(plan.batches[w.batch]),
        code=lambda w: plan.batches[w.batch].code,
    shell:
        "OMP_NUM_THREADS={params.own_threads} python -m unlocked train --runs {params.runs} --items {params.wanted} "
        "{params.options} --index {output:q} > {log:q} 2>&1"
