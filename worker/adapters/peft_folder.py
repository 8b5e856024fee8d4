"""A PEFT adapter folder: its tensors read by their names, every one of them accounted for."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..checkpoints.extents import StoredTensor
from ..checkpoints.safetensors_folder import SafetensorsFolder
from ..checkpoints.source import Source
from ..jobs.errors import BadInputError
from .peft_config import ADAPTER_CONFIG, PeftConfig, read_peft_config

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
_PICKLED = "adapter_model.bin"
FLOATS = ("BF16", "F16", "F32")

_LORA = re.compile(
    r"(?P<module>.+?)(?P<nested>(\.base_layer)*)"
    r"\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(\.default)?(\.(?P<leaf>weight|bias))?"
)
_PARTS = {
    ("lora_A", "weight"): "a",
    ("lora_B", "weight"): "b",
    ("lora_B", "bias"): "bias",
    ("lora_embedding_A", None): "a",
    ("lora_embedding_B", None): "b",
    ("lora_magnitude_vector", None): "magnitude",
    ("lora_magnitude_vector", "weight"): "magnitude",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraModule:
    """The factors of one module (or of one parameter of it), by their names in the folder."""

    module: str
    """As the base calls it: `model.layers.0.self_attn.q_proj`."""
    nested: int = 0
    """Of several parameters of one module, how far inside its wrapper lies; the first parameter is the innermost."""
    a: str
    """[rank, in], or [experts * rank, in]: experts slowest."""
    b: str
    """[out, rank], or [out, rank * experts]: experts fastest."""
    embedding: bool = False
    """The base is [in, out] then: a row for each token."""
    magnitude: str | None = None
    """DoRA's, [out]."""
    bias: str | None = None
    """B's own, [out]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftFolder:
    """An adapter as it lies on the disk, or as it would lie there; nothing but headers is read."""

    path: Path
    config: PeftConfig
    described_by: Path
    """The file that the config was read from."""
    weights: Source
    modules: tuple[LoraModule, ...]
    replaced: Mapping[str, str]
    """Base tensors that the adapter holds whole (saved modules, biases, resized embeddings), and their names here."""

    @classmethod
    def open(cls, path: Path) -> "PeftFolder":
        """BadInputError where the config is not understood, a tensor's name is not, or a factor has no partner."""
        config = read_peft_config(path)
        folder = cls.of(path, config, path / ADAPTER_CONFIG, SafetensorsFolder.of_file(_weights(path)))
        if not folder.modules and not folder.replaced:
            raise folder.bad("*", "no tensor at all", "factors of LoRA, or saved modules")
        return folder

    @classmethod
    def of(cls, path: Path, config: PeftConfig, described_by: Path, weights: Source) -> "PeftFolder":
        """The same of tensors under PEFT's names, wherever they lie."""
        found = _Found(path)
        for name in weights.tensors:
            found.sort(name)
        modules = tuple(found.modules())
        folder = cls(
            path=path,
            config=config,
            described_by=described_by,
            weights=weights,
            modules=modules,
            replaced=found.replaced,
        )
        folder._check()
        return folder

    @property
    def files(self) -> tuple[Path, ...]:
        """All that it is read from."""
        return (self.described_by, *self.weights.files_of(self.weights.tensors))

    def tensor(self, name: str) -> StoredTensor:
        """A tensor's header."""
        return self.weights.tensors[name]

    def bad(self, name: str, found: str, expected: str, next_step: str = "") -> BadInputError:
        """A tensor that is not as it must be."""
        step = next_step or "Check that the adapter is whole and belongs to this base."
        return BadInputError(
            "bad_tensor", f"adapter {self.path}: tensor {name!r}", found=found, expected=expected, next_step=step
        )

    def _check(self) -> None:
        for name, tensor in self.weights.tensors.items():
            if tensor.dtype not in FLOATS:
                raise self.bad(name, f"dtype {tensor.dtype}", " or ".join(FLOATS))
        for module in self.modules:
            self._check_factors(module)

    def _check_factors(self, module: LoraModule) -> None:
        a, b = self.tensor(module.a).shape, self.tensor(module.b).shape
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise self.bad(module.a, f"shape {list(a)}, and {list(b)} of B", "[rank, in] and [out, rank]")
        if (module.magnitude is not None) != (self.config.use_dora and not module.nested):
            found = "no magnitude vector" if module.magnitude is None else "a magnitude vector"
            raise self.bad(module.a, f"{found} beside it", f"use_dora {self.config.use_dora}, as its config says")
        if (module.bias is not None) != (self.config.lora_bias and not module.embedding):
            found = "no bias" if module.bias is None else "a bias"
            raise self.bad(module.b, f"{found} beside it", f"lora_bias {self.config.lora_bias}, as its config says")
        for vector in (module.magnitude, module.bias):
            if vector is not None and self.tensor(vector).shape != (b[0],):
                raise self.bad(vector, f"shape {list(self.tensor(vector).shape)}", f"[{b[0]}]")


@dataclass(slots=True)
class _Found:
    """What the names come to."""

    path: Path
    parts: defaultdict[tuple[str, int, bool], dict[str, str]] = field(
        default_factory=lambda: defaultdict[tuple[str, int, bool], dict[str, str]](dict)
    )
    replaced: dict[str, str] = field(default_factory=dict[str, str])

    def sort(self, name: str) -> None:
        """Take one tensor's name apart."""
        if not name.startswith(PREFIX):
            raise self._unknown(name, f"no prefix {PREFIX!r}")
        match = _LORA.fullmatch(name.removeprefix(PREFIX))
        if match is None:
            self._replacement(name)
            return
        part = _PARTS.get((match["part"], match["leaf"]))
        if part is None:
            raise self._unknown(name, f"{match['part']} with {match['leaf'] or 'no leaf'}")
        embedding = match["part"].startswith("lora_embedding")
        nested = len(match["nested"]) // len(".base_layer")
        place = self.parts[match["module"], nested, embedding]
        if part == "magnitude":  # one name for linear layers and embeddings
            place = self.parts[match["module"], nested, False]
        if part in place:
            raise self._unknown(name, f"the same part as {place[part]!r}")
        place[part] = name

    def modules(self) -> Iterator[LoraModule]:
        """Modules with all their parts."""
        for (module, nested, embedding), parts in self._joined():
            if not {"a", "b"} <= parts.keys():
                missing = "B" if "a" in parts else "A"
                raise BadInputError(
                    "missing_tensor",
                    f"adapter {self.path}: module {module!r}",
                    found=f"no factor {missing} beside {next(iter(parts.values()))!r}",
                    expected="A and B",
                    next_step="Save or download the adapter again, completely.",
                )
            yield LoraModule(module=module, nested=nested, embedding=embedding, **parts)

    def _joined(self) -> Iterable[tuple[tuple[str, int, bool], dict[str, str]]]:
        """An embedding's magnitude is sorted with the linear layers': put it where its factors are."""
        for (module, nested, embedding), parts in list(self.parts.items()):
            if parts.keys() == {"magnitude"} and not embedding and (module, nested, True) in self.parts:
                self.parts[module, nested, True] |= self.parts.pop((module, nested, False))
        return ((key, parts) for key, parts in self.parts.items() if parts)

    def _replacement(self, name: str) -> None:
        base = re.sub(r"\.modules_to_save(\.default)?(?=\.)|\.base_layer(?=\.)", "", name.removeprefix(PREFIX))
        if "lora_" in base or "token_adapter" in base:
            raise self._unknown(name, "a part of an adapter that is not known")
        if base in self.replaced:
            raise self._unknown(name, f"the same tensor as {self.replaced[base]!r}")
        self.replaced[base] = name

    def _unknown(self, name: str, found: str) -> BadInputError:
        return BadInputError(
            "unknown_tensor",
            f"adapter {self.path}: tensor {name!r}",
            found=found,
            expected=f"names as PEFT saves them: {PREFIX}MODULE.lora_A.weight and the like",
            next_step="Save the adapter with PEFT's save_pretrained; what is not understood is never left out.",
        )


def _weights(path: Path) -> Path:
    if not (path / WEIGHTS).exists() and (path / _PICKLED).exists():
        raise BadInputError(
            "missing_file",
            f"adapter {path}",
            found=f"{_PICKLED}, which is a pickle",
            expected=WEIGHTS,
            next_step="Save it again with PEFT's save_pretrained, which writes safetensors.",
        )
    return path / WEIGHTS
