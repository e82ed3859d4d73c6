"""Training: one rule, one job per batch of runs."""


onstart:
    flow.check_folders(setup)
    flow.tell_unsettled(setup)
    flow.offer_drawing(setup)
    flow.Progress(call, workflow.nodes or workflow.cores).start()


onsuccess:
    flow.say(flow.what_to_open(call))


onerror:
    flow.explain_failure(setup)


rule train:
    """Train runs in one process, those of a batch that are wanted and missing: the call has listed them."""
    input:
        lambda w: flow.data_files(setup, plan.batches[w.batch]),
        lambda w: call.lists_of(plan.batches[w.batch]),
    output:
        str(setup.results / "{scale}" / "{paper}" / "batches" / "{batch}.txt"),
    log:
        str(setup.results / "{scale}" / "{paper}" / "logs" / "{batch}.log"),
    benchmark:
        str(setup.results / "{scale}" / "{paper}" / "benchmarks" / "{batch}.tsv")
    priority: lambda w: flow.priority_of(call, plan.batches[w.batch])
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
        results=lambda w: str(setup.results),
        list=lambda w: str(call.list_of(plan.batches[w.batch])),
    message:
        "{call:{wildcards.batch}}"
    shell:
        "OMP_NUM_THREADS={params.own_threads} {params.launcher} python -m unlocked train --list {params.list:q} "
        "--results {params.results:q} --index {output:q} > {log:q} 2>&1"


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
