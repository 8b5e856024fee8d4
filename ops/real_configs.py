"""config.json files of models that people run, out of the PyPI package `aiconfigurator-core` (Apache-2.0)."""

from pathlib import Path

from cache import cached, unpack_from_wheel

PACKAGE = "aiconfigurator-core==0.12.0"
_VERSION = PACKAGE.rpartition("=")[2]


def real_configs() -> Path:
    """A folder of `<owner>--<model>_config.json`, some with `..._hf_quant_config.json` beside them."""
    return cached(f"real-configs-{_VERSION}", _unpack)


def _unpack(folder: Path) -> None:
    folder.mkdir()
    unpack_from_wheel(PACKAGE, "aiconfigurator_core/model_configs/", folder)
