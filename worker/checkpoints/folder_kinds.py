"""What a folder is, told by the files in it: for errors about one that was expected to be something else."""

from pathlib import Path

_KINDS = (
    ("adapter_config.json", "a PEFT adapter"),
    ("latest_checkpointed_iteration.txt", "a Megatron checkpoint"),
    (".metadata", "an iteration of a Megatron checkpoint"),
    ("config.json", "an HF checkpoint"),
)


def kind_of(folder: Path) -> str | None:
    """None for nothing that we know."""
    return next((f"{kind} ({name})" for name, kind in _KINDS if (folder / name).exists()), None)
