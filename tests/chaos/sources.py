"""Small checkpoints to convert, and spoilt ones."""

from pathlib import Path

from tests.llama_folder import write_llama
from tests.peft_here import write_adapter


def write_sources(root: Path) -> None:
    """Everything that kinds.py names as a source, but what an import makes of it."""
    write_llama(root / "small", layers=2, hidden=64)
    write_llama(root / "large", layers=4, hidden=128)
    write_adapter(root / "small", root / "adapter", target_modules=["q_proj", "v_proj", "down_proj"])
    write_llama(root / "unknown-field", layers=1, hidden=64, more={"surprising_new_field": 7})
    write_llama(root / "missing-tensor", layers=1, hidden=64, without="model.norm.weight")
