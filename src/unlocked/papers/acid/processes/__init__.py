"""One process per worker: gradients and gossip steps truly in parallel, over torch.distributed.

The process that trains coordinates (`training`, `coordinator`): it pairs workers, hands out gradients, collects
samples, notices deaths. Workers (`worker`; `synchronous` for AR-SGD) hold the vectors and exchange them directly with
each other. `messages` is what coordinator and workers say; `launch` starts workers here, or lets those that torchrun or
Slurm started take part.
"""
