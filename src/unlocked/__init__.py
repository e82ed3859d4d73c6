"""Two papers that remove a lock from training: asynchronous gossip (A²CiD²) and forward gradients with local guesses.

One road, and imports only look upstream: configs -> plan -> train -> run record -> item (table, figure) -> report.
"""

__version__ = "0.1.0"
