"""What an export knows of its model: which description of a checkpoint is taken, and that the others agree."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoints.hf_folder import CONFIG, read_json_object, side_files
from ..checkpoints.yaml_file import read_yaml_object
from ..jobs.errors import BadInputError
from ..mapping.bindings import Model
from ..mapping.checkpoint_values import model_of, refuse_contradiction
from ..mapping.record import Record
from ..mapping.run_config import RUN_CONFIG, refuse_other_layers, values_of_run_config
from ..mapping.training_args import has_model, values_of_args
from ..mapping.written_config import read_written
from .config import read_model
from .model_configs import MODEL_CONFIG


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """The model of a checkpoint, and the HF files that describe it."""

    model: Model
    carried: dict[str, Path]
    config_json: bytes | None
    """None where config.json is among the carried files."""
    described_by: tuple[Path, ...]
    """Files that say so, or were held against what does."""


def describe(hf_config: Path | None, source: Path, folder: Path, args: Mapping[str, object]) -> Described:
    """What was given; else `hf/` beside the checkpoint; else model_config.json, run_config.yaml or the run's `args`.

    `folder` is the iteration folder of `source`. BadInputError where there is none, or two that contradict each other.
    """
    run_config = values_of_run(folder)
    saved = values_of_args(args, f"the args saved in {folder}") if has_model(args) else None
    described = _first(hf_config, (source, folder.parent), run_config, saved)
    refuse_contradiction(described.model, [values for values in (run_config, saved) if values is not None])
    return replace(described, described_by=(*described.described_by, *run_config_files(folder)))


def _first(
    hf_config: Path | None, places: tuple[Path, ...], run_config: Record | None, saved: Record | None
) -> Described:
    candidates = (hf_config,) if hf_config else tuple(place / "hf" for place in places)
    for folder in candidates:
        if hf_config or (folder / CONFIG).exists():
            return _given(folder)
    for place in places:
        if (place / MODEL_CONFIG).exists():
            return _written(place / MODEL_CONFIG)
    if run_config is not None:
        refuse_other_layers(run_config)
        return _derived(model_of(run_config))
    if saved is not None:
        return _derived(model_of(saved))
    raise _nothing(places[0])


def values_of_run(folder: Path) -> Record | None:
    """What Megatron-Bridge's run config in an iteration folder says of the model, if it is there."""
    for path in run_config_files(folder):
        return values_of_run_config(read_yaml_object(path, "a run's config as Megatron-Bridge leaves it"), str(path))
    return None


def run_config_files(folder: Path) -> tuple[Path, ...]:
    """That config's file, if it is there."""
    path = folder / RUN_CONFIG
    return (path,) if path.exists() else ()


def _given(folder: Path) -> Described:
    model = read_model(folder)
    if folder.is_file():
        return Described(model=model, carried={CONFIG: folder}, config_json=None, described_by=(folder,))
    return Described(model=model, carried=side_files(folder), config_json=None, described_by=(folder / CONFIG,))


def _written(path: Path) -> Described:
    family, mcore = read_written(read_json_object(path, "a ModelConfig as an import leaves it"), str(path))
    return _derived(Model(family=family, hf=family.to_hf(mcore), mcore=mcore), path)


def _derived(model: Model, *described_by: Path) -> Described:
    text = json.dumps(model.hf.values, indent=2).encode() + b"\n"
    return Described(model=model, carried={}, config_json=text, described_by=described_by)


def _nothing(source: Path) -> BadInputError:
    return BadInputError(
        "missing_file",
        f"config of checkpoint {source}",
        found=f"neither hf/{CONFIG} nor {MODEL_CONFIG} beside it, neither {RUN_CONFIG} nor sizes in args inside",
        expected="one of them, or a given HF config",
        next_step="Name a folder with config.json and tokenizer: `ferry export ... --hf-config DIR`.",
    )
