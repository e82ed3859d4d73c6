"""Gossip between processes, for anybody's training (`async_gossip`) and for the process engine of the artifact.

Nothing here knows about networks, data or settings. `vectors`: a worker's state and its lock. `averaging`: whom a
worker asks, when, and what becomes of it, by `exchange` of vectors. `wire`: messages, and who may send them. `hub`: the
middle of a star, which knows who is there; `server`: that of `AsyncGossip`, which takes means. `rendezvous`: of
processes that torchrun or Slurm started.
"""
