"""Gossip between processes: a worker's vectors, their exchange with a peer, who meets whom, how processes find another.

Nothing here knows about networks, data or settings: `vectors` (a worker's state and its lock), `exchange` (a vector to
a peer and one back), `matchmaking` (pairs, first come, first served), `channel` (messages), `rendezvous` (of processes
that torchrun or Slurm started).
"""
