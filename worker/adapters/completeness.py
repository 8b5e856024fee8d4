"""Whether an adapter is what its config says: all that it speaks of is there, and no factors that it does not name."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from ..jobs.errors import BadInputError
from .base_tensors import BaseTensors
from .peft_config import PeftConfig
from .peft_folder import PeftFolder

_NOT_ALWAYS_LINEAR = re.compile(r"\.experts\.\d+\.|\.(gate|router)$")
"""Experts and routers: layers to transformers 4, and to PEFT; plain parameters to transformers 5."""

_NEVER_LINEAR = ("embed_tokens", "embeddings", "lm_head")
"""`all-linear` leaves out the output layer, as PEFT does."""


@dataclass(frozen=True, kw_only=True)
class Completeness:
    """An adapter beside its base."""

    folder: PeftFolder
    base: BaseTensors
    adapted: Collection[str]
    """Tensors of the base that it has factors for."""

    def refuse_missing(self) -> None:
        """BadInputError where the config says that a tensor of the base is adapted, and the adapter has nothing."""
        config = self._config
        for name in self.base.loaded():
            module, _, leaf = name.rpartition(".")
            if self._wants_factors(name) and name not in self.adapted:
                raise self._missing(name, "factors, since its config targets it")
            if config.saves(module) and name not in self.folder.replaced:
                raise self._missing(name, "the tensor itself, since modules_to_save names it")
            if leaf == "bias" and config.bias == "all" and name not in self.folder.replaced:
                raise self._missing(name, "the tensor itself, since bias is 'all'")

    def refuse_unnamed(self) -> None:
        """BadInputError for factors of a layer that the config does not target: PEFT reads the adapter without them."""
        # PEFT ties an output layer's factors to its embedding's by itself; why that is refused is said elsewhere.
        tied = self.base.tied[0] if self.base.tied is not None and self._config.ensure_weight_tying else None
        for module in self.folder.modules:
            name = f"{self.base.stored(module.module)}.weight"
            if name in self.adapted and name != tied and not self._wants_factors(name):
                raise self._unnamed(module.module)

    @property
    def _config(self) -> PeftConfig:
        return self.folder.config

    def _wants_factors(self, name: str) -> bool:
        if self._config.targets_parameter(name):
            return True
        module, _, leaf = name.rpartition(".")
        if leaf != "weight" or len(self.base.shape(name) or ()) != 2:
            return False
        if self._config.targets_all_linear:
            return self._is_linear(module) and not self._config.leaves_out(module)
        return self._config.targets(module) or self._config.targets(self.base.as_loaded(module))

    def _is_linear(self, module: str) -> bool:
        if module.rpartition(".")[2] in _NEVER_LINEAR:
            return False
        return not _NOT_ALWAYS_LINEAR.search(module) or _kind(module) in self._adapted_kinds

    @cached_property
    def _adapted_kinds(self) -> frozenset[str]:
        """Where one expert, or router, was a layer to be adapted, all were."""
        return frozenset(_kind(name.removesuffix(".weight")) for name in self.adapted)

    def _missing(self, name: str, expected: str) -> BadInputError:
        return BadInputError(
            "missing_tensor",
            f"adapter {self.folder.path}: base tensor {name!r}",
            found="nothing for it in the adapter",
            expected=expected,
            next_step="Check that the adapter is whole; if it was never adapted, name it in exclude_modules.",
        )

    def _unnamed(self, module: str) -> BadInputError:
        return BadInputError(
            "unknown_tensor",
            f"adapter {self.folder.path}: module {module!r}",
            found="factors for it, which its config does not name: PEFT leaves out such factors",
            expected=f"factors of those modules alone that its config means: {self._config.choice}",
            next_step="If the module was trained, name it in target_modules of adapter_config.json; "
            "else save the adapter again without its factors.",
        )


def _kind(module: str) -> str:
    return re.sub(r"\d+", "N", module)
