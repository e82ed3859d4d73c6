"""Training: one rule, one job per batch of runs."""

flow.drop_stale_indexes(setup)


onstart:
    flow.check_folders(setup)
    flow.tell_unsettled(setup)


onerror:
    flow.explain_failure(setup)


rule train:
    """Train a batch of runs in one process; runs whose record holds are not trained again."""
    input:
        lambda w: flow.data_files(setup, plan.batches[w.batch]),
    output:
        str(setup.results / "{scale}" / "{paper}" / "batches" / "{batch}.txt"),
    log:
        str(setup.results / "{scale}" / "{paper}" / "logs" / "{batch}.log"),
    benchmark:
        str(setup.results / "{scale}" / "{paper}" / "benchmarks" / "{batch}.tsv")
    conda:
        "../../environment.yml"
    threads: lambda w: flow.resources_of(setup, plan.batches[w.batch]).threads
    resources:
        mem_mb=lambda w, attempt: flow.resources_of(setup, plan.batches[w.batch], attempt).mem_mb,
        runtime=lambda w, attempt: flow.resources_of(setup, plan.batches[w.batch], attempt).runtime,
        gpu=lambda w: flow.resources_of(setup, plan.batches[w.batch]).gpu,
    params:
        launcher="",
        own_threads=plan.runtime.get("threads", 1),
        options=setup.options(),
        runs=lambda w: plan.batches[w.batch].runs,
        wanted=lambda w: plan.items_of(plan.batches[w.batch]),
        code=lambda w: plan.batches[w.batch].code,
        damaged=lambda w: setup.set_aside[w.batch],
    shell:
        "OMP_NUM_THREADS={params.own_threads} {params.launcher} python -m unlocked train --runs {params.runs} --items {params.wanted} "
        "{params.options} --index {output:q} > {log:q} 2>&1"


use rule train as train_processes with:
    # One process per worker. Here the job starts them itself; with `mpi` (profiles/slurm) the scheduler does, as tasks
    # that may stand on several nodes, each with cores and a GPU of its own.
    wildcard_constraints:
        batch=flow.batches_of_processes(setup),
    # Parameters that are not named here are as above; resources are not.
    resources:
        mem_mb=lambda w, attempt: flow.resources_of(setup, plan.batches[w.batch], attempt).mem_mb,
        runtime=lambda w, attempt: flow.resources_of(setup, plan.batches[w.batch], attempt).runtime,
        gpu=lambda w: flow.resources_of(setup, plan.batches[w.batch]).task_gpus,
        tasks=lambda w: flow.resources_of(setup, plan.batches[w.batch]).tasks,
        tasks_per_gpu=1,
        cpus_per_task=plan.runtime.get("threads", 1),
        mpi="",
    params:
        launcher=lambda w, resources: f"{resources.mpi} --ntasks={resources.tasks}" if resources.mpi else "",


ruleorder: train_processes > train
