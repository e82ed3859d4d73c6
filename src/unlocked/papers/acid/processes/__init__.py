"""One process per worker: gradients and averagings truly in parallel (`gossip.distributed`).

The process that trains coordinates (`training`, `coordinator`): it hands out gradients, collects samples, notices
deaths. Workers (`worker`; `synchronous` for AR-SGD) hold the vectors. `launch` starts workers here, or lets those that
torchrun or Slurm started take part; `state` is what is kept.
"""
