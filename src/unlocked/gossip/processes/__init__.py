"""Engine 2: one process per worker, gradients and pair averagings truly in parallel, over torch.distributed.

The process of `unlocked train` coordinates (`training`, `coordinator`): it pairs workers, hands out gradients, collects
samples, notices deaths. Workers (`worker`, `synchronous` for AR-SGD) hold the vectors and exchange them directly with
each other (`vectors`, `pairs`). `messages` is what coordinator and workers say; `launch` starts workers here, or lets
those that torchrun or Slurm started take part.
"""
