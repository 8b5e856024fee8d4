"""On a rank: run configs through Megatron-Bridge's own readers. It is no dependency of ours: see `is_here`."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

UNUSED = (
    "causal_conv1d",
    "comet_ml",
    "datasets",
    "flash_attn",
    "flashinfer",
    "megatron.energon",
    "mlflow",
    "modelopt",
    "nemo_run",
    "PIL",
    "qwen_vl_utils",
    "torch.utils.tensorboard",
    "wandb",
)
"""What it imports to train, and no reader needs."""


def is_here() -> bool:
    """Whether somebody has put it on the path: `pip install --no-deps --target DIR megatron-bridge omegaconf ...`."""
    return find_spec("megatron") is not None and find_spec("megatron.bridge") is not None


class _Anything(ModuleType):
    """A module that has every name."""

    __version__ = "9.9.9"
    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__class_getitem__": classmethod(lambda cls, _: cls)})


class _StandIns(MetaPathFinder, Loader):
    """Finds what is missing of the unused."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        unused = any(fullname == name or fullname.startswith(f"{name}.") for name in UNUSED)
        return ModuleSpec(fullname, self, is_package=True) if unused else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        return


@contextmanager
def _importable() -> Iterator[None]:
    with mock.patch.object(sys, "meta_path", [_StandIns(), *sys.meta_path]):
        yield


def models_of(texts: dict[str, str], folder: str) -> dict[str, dict[str, Any]]:
    """By name, the values of the model that a `run_config.yaml` describes; an error where a reader refuses it.

    Read as NeMo-RL does, where no unknown name passes, and as Bridge's own exporter does.
    """
    with _importable():
        from megatron.bridge.training.config import ConfigContainer  # pyright: ignore  # not installed
        from megatron.bridge.training.model_load_save import load_model_config  # pyright: ignore
        from megatron.bridge.utils.instantiate_utils import InstantiationMode  # pyright: ignore

    found: dict[str, dict[str, Any]] = {}
    for name, text in texts.items():
        place = Path(folder, name)
        place.mkdir(parents=True)
        path = place / "run_config.yaml"
        path.write_text(text)
        strictly: Any = ConfigContainer.from_yaml(str(path), mode=InstantiationMode.STRICT).model
        loaded, _ = load_model_config(str(place))
        assert type(strictly) is type(loaded)
        found[name] = _plain(strictly)
    return found


def _plain(model: Any) -> dict[str, Any]:
    from worker.mapping.upstream_values import ACTIVATION, activation_name, to_json

    values = {name: value for name, value in vars(model).items() if not callable(value) and not name.startswith("_")}
    written = {name: to_json(name, value) for name, value in values.items()}
    return written | {ACTIVATION: activation_name(model.activation_func), "class": type(model).__name__}
