"""Adapters' own checkpoints, and the hook that adds adapters while a model is built."""

# Megatron-Core leaves half of its functions without types: that is not ours to report.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron.core.process_groups_config import ProcessGroupCollection
from torch import nn

from .adapting import add_adapters, is_adapter_key, mark_saved_parameters, saved_keys
from .checkpoint_names import content_of, keys_of
from .chunks import chunks_of
from .model_checkpoint import (
    asking,
    generate_model_state_dict,
    load_sections,
    read,
    section_name,
    strategy_for,
    write,
)
from .peft import Peft

Model = list[nn.Module]
Loader = Callable[[Model], Model | None]
"""Loads a checkpoint into the chunks; answers them, or others in their place, or None for the same ones."""


def create_peft_hook(
    peft: Peft,
    base_checkpoint_loader: Loader | None = None,
    adapter_checkpoint_loader: Loader | None = None,
    *,
    training: bool = True,
) -> Callable[[Model], Model]:
    """A pre-wrap hook of `ModelConfig.pre_wrap_hooks`: the chunks with their adapters, before DDP wraps them.

    In this order: the base is loaded, adapters are added, what trains is marked as part of an adapter's checkpoint,
    the adapter is loaded. After Megatron-Bridge's `create_peft_hook` (PR 3813).
    """

    def hook(model: Model) -> Model:
        model = _loaded(base_checkpoint_loader, model)
        model = add_adapters(model, peft, training=training)
        mark_saved_parameters(model)
        return _loaded(adapter_checkpoint_loader, model)

    return hook


def adapter_state_dict(
    model: Sequence[nn.Module] | nn.Module,
    model_sd_kwargs: Mapping[str, Any] | None = None,
    ckpt_format: str = "torch_dist",
    *,
    pg_collection: ProcessGroupCollection | None = None,
) -> dict[str, dict[str, Any]]:
    """`generate_model_state_dict` without what is not the adapter's: its weights, and what else was marked to be saved.

    ValueError where the model has no adapter.
    """
    chunks = chunks_of(model)
    sections = generate_model_state_dict(chunks, model_sd_kwargs, ckpt_format, pg_collection=pg_collection)
    for number, chunk in enumerate(chunks):
        name, saved = section_name(number, len(chunks)), saved_keys(chunk)
        sections[name] = {key: value for key, value in sections[name].items() if is_adapter_key(key) or key in saved}
    return sections


def save_peft_adapter_checkpoint(
    model: Sequence[nn.Module] | nn.Module,
    path: Path | str,
    peft: Peft,
    *,
    common: Mapping[str, Any] | None = None,
    pg_collection: ProcessGroupCollection | None = None,
) -> None:
    """Write the adapter alone as `torch_dist` into the folder `path`, with rank, alpha and type beside it.

    It loads at any parallelism. All ranks take part. ValueError where the folder is not empty.
    """
    described: dict[str, Any] = {"type": peft.type, "dim": peft.dim, "alpha": peft.alpha}
    described |= {"target_modules": list(peft.targets), "exclude_modules": list(peft.exclude_modules)}
    described |= {"dropout": peft.dropout, "normalize_moe_lora": peft.normalize_moe_lora}
    state: dict[str, Any] = {"checkpoint_version": 3.0, "iteration": 0, "peft": described, **(common or {})}
    write({**state, **adapter_state_dict(model, pg_collection=pg_collection)}, Path(path))


def load_peft_adapter_checkpoint(
    model: Sequence[nn.Module] | nn.Module,
    path: Path | str,
    peft: Peft,
    *,
    strict: bool = False,
    model_sd_kwargs: Mapping[str, Any] | None = None,
    ckpt_format: str = "torch_dist",
    pg_collection: ProcessGroupCollection | None = None,
    fully_parallel_load: bool = False,
    load_strategy: Any = None,
) -> None:
    """Load an adapter into chunks that `peft` has already been applied to; the base stays as it is.

    An adapter key that the checkpoint lacks is upstream's error. `strict` asks that every key of the model be there,
    the base's too. KeyError where several chunks' sections lack; ValueError where rank, alpha or type were others.
    """
    keys = keys_of(Path(path))
    asked = {**asking(content_of(Path(path), keys), pg_collection), **(model_sd_kwargs or {})}
    state: dict[str, Any] = dict(adapter_state_dict(model, asked, ckpt_format, pg_collection=pg_collection))
    loaded = read(state, Path(path), keys, load_strategy or strategy_for(fully_parallel_load, pg_collection))
    _refuse_other(loaded.get("peft"), peft, Path(path))
    load_sections(model, loaded, strict=strict)


def _loaded(load: Loader | None, model: Model) -> Model:
    answer = None if load is None else load(model)
    return model if answer is None else answer


def _refuse_other(saved: Any, peft: Peft, path: Path) -> None:
    """Bridge's checkpoints say nothing of the adapter; ours do, since a wrong alpha would scale it silently."""
    for name in ("type", "dim", "alpha") if isinstance(saved, dict) else ():
        if saved.get(name) != getattr(peft, name):
            raise ValueError(
                f"adapter checkpoint {path}: found {name} {saved.get(name)!r}, expected {getattr(peft, name)!r} as "
                "given. Give the one that it was trained with."
            )
