"""The worker side of Ferry: job vocabulary, mapping, checkpoints, engine, handlers and dispatch."""

__version__ = "0.1.0"
