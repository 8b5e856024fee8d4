"""For trainers: read what an import left, in the trainer's own process."""

from .load import for_this_host, load_model_config

__all__ = ["for_this_host", "load_model_config"]
