"""Two papers that remove a lock from training: gossip with momentum (A²CiD²), forward gradients with local guesses."""

__version__ = "0.2.0"
