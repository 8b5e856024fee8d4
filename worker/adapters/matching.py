"""An adapter matched to its base: which factors are added to which tensor, and that nothing is left over."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..checkpoints.extents import Literal, Operand, Permuted
from ..checkpoints.operations import Factors
from ..jobs.errors import BadInputError
from ..mapping.blocks import Address
from .base_tensors import BaseTensors
from .completeness import Completeness
from .peft_folder import PREFIX, LoraModule, PeftFolder

_FUSED: dict[str, tuple[tuple[str, ...], ...]] = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}
"""What transformers 5 holds as one parameter for all experts, and the names of its pieces in checkpoints, by rows."""

_ONE = (Literal(b"\x00\x00\x80\x3f"),)
"""1.0 in fp32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Factors as operands, and what they mean."""

    factors: Factors
    operands: tuple[Operand, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """What an adapter does to its base."""

    folder: PeftFolder
    pairs: Mapping[Address, Pair]
    """By tensor, or slice of a stack."""
    biases: Mapping[Address, Pair]
    replaced: Mapping[str, str]
    """Base tensors, and the adapter's tensors that take their place before any factors are added."""

    @property
    def touched(self) -> tuple[str, ...]:
        """Base tensors, in order."""
        updated = (address.name for address in (*self.pairs, *self.biases))
        return tuple(dict.fromkeys((*updated, *self.replaced)))


def match(folder: PeftFolder, base: BaseTensors) -> Matched:
    """BadInputError for a tensor that belongs to nothing, a shape of another base, or factors missing or not meant."""
    matching = _Matching(folder, base)
    for module in folder.modules:
        matching.add(module)
    adapted = frozenset(address.name for address in matching.pairs)
    completeness = Completeness(folder=folder, base=base, adapted=adapted)
    completeness.refuse_unnamed()
    completeness.refuse_missing()
    return Matched(folder=folder, pairs=matching.pairs, biases=matching.biases, replaced=dict(matching.replacements()))


@dataclass(slots=True)
class _Matching:
    folder: PeftFolder
    base: BaseTensors
    pairs: dict[Address, Pair] = field(default_factory=dict[Address, Pair])
    biases: dict[Address, Pair] = field(default_factory=dict[Address, Pair])

    def add(self, module: LoraModule) -> None:
        """Find what a module's factors are added to."""
        weight = f"{self.base.stored(module.module)}.weight"
        shape = self.base.shape(weight)
        if not module.nested and shape is not None and len(shape) == 2:
            self._add_matrix(module, weight, shape)
        else:
            self._add_parameter(module)

    def _add_matrix(self, module: LoraModule, weight: str, shape: tuple[int, ...]) -> None:
        turned = module.embedding or self._turned(module, shape)
        out, inner = self.folder.tensor(module.b).shape[0], self.folder.tensor(module.a).shape[1]
        if shape != ((inner, out) if turned else (out, inner)):
            raise self._other_base(module, weight, shape, [inner, out] if turned else [out, inner])
        self._check_rank(module, module.module, 1)
        self._put(self.pairs, Address(weight), module.a, self._pair(module, module.module, turned=turned))
        if module.bias is not None:
            self._add_bias(module, weight.removesuffix("weight") + "bias")

    def _turned(self, module: LoraModule, shape: tuple[int, ...]) -> bool:
        """With fan_in_fan_out the base is [in, out]; PEFT ignores the field for linear layers, which are not."""
        if not self.folder.config.fan_in_fan_out:
            return False
        if shape[0] == shape[1]:
            raise self.folder.bad(
                module.a,
                f"fan_in_fan_out, and a square base of {shape[0]} rows",
                "a base whose shape says which way round it is",
                "If the model's layers are torch's Linear, set fan_in_fan_out to false in adapter_config.json.",
            )
        return shape == (self.folder.tensor(module.a).shape[1], self.folder.tensor(module.b).shape[0])

    def _add_bias(self, module: LoraModule, bias: str) -> None:
        """s * b is the product of rank one of the bias and a single one."""
        assert module.bias is not None
        tensor = self.folder.tensor(module.bias)
        if self.base.shape(bias) != tensor.shape:
            raise self.folder.bad(
                module.bias,
                f"a bias of shape {list(tensor.shape)}, while the base has {self.base.shape(bias) or 'none'}",
                f"base tensor {bias!r} to add it to",
                "A layer without a bias cannot take one: train with lora_bias false.",
            )
        one = Operand(_ONE, 4, 0)
        factors = Factors(self.folder.config.scale(module.module), 1, "F32", tensor.dtype)
        operands = (one, Operand(self.folder.weights.whole(module.bias), tensor.nbytes, 0))
        self._put(self.biases, Address(bias), module.bias, Pair(factors=factors, operands=operands))

    def _add_parameter(self, module: LoraModule) -> None:
        stored = self.base.stored(module.module)
        names = self._parameters(module.module, stored)
        depth = max(other.nested for other in self.folder.modules if other.module == module.module) + 1
        if len(names) != depth:
            raise self._matches_nothing(
                module.a, f"{depth} wrapped parameters of {module.module!r}, {len(names)} known"
            )
        name = names[depth - 1 - module.nested]
        shape = self.base.shape(f"{stored}.{name}")
        if shape is not None:
            self._add_stack(module, f"{stored}.{name}", shape)
        else:
            self._add_pieces(module, stored, name)

    def _parameters(self, module: str, stored: str) -> list[str]:
        """The module's targeted parameters, in the order in which PEFT wraps them."""
        config = self.folder.config
        known = [
            name
            for name in _FUSED
            if config.targets_parameter(f"{module}.{name}") and (self._has(stored, name) or self._pieces(stored, name))
        ]
        own = re.compile(rf"{re.escape(stored)}\.([^.]+)")
        found = (own.fullmatch(name) for name in self.base.tensors)
        others = [match[1] for match in found if match and config.targets_parameter(f"{module}.{match[1]}")]
        return known if known or len(others) != 1 else others

    def _has(self, stored: str, name: str) -> bool:
        return f"{stored}.{name}" in self.base.tensors

    def _pieces(self, stored: str, name: str) -> tuple[str, ...]:
        for pieces in _FUSED[name]:
            if all(f"{stored}.0.{piece}.weight" in self.base.tensors for piece in pieces):
                return pieces
        return ()

    def _add_stack(self, module: LoraModule, name: str, shape: tuple[int, ...]) -> None:
        experts = shape[0] if len(shape) == 3 else 1
        out, inner = self.folder.tensor(module.b).shape[0], self.folder.tensor(module.a).shape[1]
        turned = len(shape) == 3 and (self.base.turned_experts if out == inner else shape[1:] == (inner, out))
        if shape[-2:] != ((inner, out) if turned else (out, inner)) or len(shape) > 3:
            raise self._other_base(module, name, shape, [experts, out, inner])
        self._check_rank(module, f"{module.module}.{name.rsplit('.', 1)[1]}", experts)
        for expert, pair in self._experts(module, name.rsplit(".", 1)[1], experts, 0, out, turned=turned):
            self._put(self.pairs, Address(name, (expert,) if len(shape) == 3 else ()), module.a, pair)

    def _add_pieces(self, module: LoraModule, stored: str, name: str) -> None:
        pieces = self._pieces(stored, name)
        experts = sum(
            1 for tensor in self.base.tensors if re.fullmatch(rf"{re.escape(stored)}\.\d+\.{pieces[0]}\.weight", tensor)
        )
        rows = self.folder.tensor(module.b).shape[0] // len(pieces)
        inner = self.folder.tensor(module.a).shape[1]
        self._check_rank(module, f"{module.module}.{name}", experts)
        for number, piece in enumerate(pieces):
            for expert, pair in self._experts(module, name, experts, number * rows, rows, turned=False):
                weight = f"{stored}.{expert}.{piece}.weight"
                shape = self.base.shape(weight) or ()
                if shape != (rows, inner):
                    raise self._other_base(module, weight, shape, [rows, inner])
                self._put(self.pairs, Address(weight), module.a, pair)

    def _experts(
        self, module: LoraModule, parameter: str, experts: int, start: int, rows: int, *, turned: bool
    ) -> Iterator[tuple[int, Pair]]:
        """Each expert's own factors: A has experts slowest, B fastest."""
        a, b = self.folder.tensor(module.a), self.folder.tensor(module.b)
        rank, out = a.shape[0] // experts, b.shape[0]
        apart = Permuted(self.folder.weights.whole(module.b), (out, rank, experts), (2, 0, 1), b.item_bytes)
        scale = self.folder.config.scale(f"{module.module}.{parameter}")
        factors = Factors(scale, rank, a.dtype, b.dtype, turned, twice=experts > 1)
        for expert in range(experts):
            of_a = self.folder.weights.rows(module.a, (), expert * rank, rank)
            row_bytes = rank * b.item_bytes
            of_b = Operand((apart,), rows * row_bytes, 0, (expert * out + start) * row_bytes)
            yield expert, Pair(factors=factors, operands=(Operand(of_a, sum(run.length for run in of_a), 0), of_b))

    def _pair(self, module: LoraModule, key: str, *, turned: bool) -> Pair:
        names = [module.a, module.b, *((module.magnitude,) if module.magnitude else ())]
        tensors = [self.folder.tensor(name) for name in names]
        factors = Factors(
            self.folder.config.scale(key),
            tensors[0].shape[0],
            tensors[0].dtype,
            tensors[1].dtype,
            turned,
            tensors[2].dtype if module.magnitude else None,
        )
        operands = tuple(
            Operand(self.folder.weights.whole(name), tensor.nbytes, 0)
            for name, tensor in zip(names, tensors, strict=True)
        )
        return Pair(factors=factors, operands=operands)

    def _put(self, where: dict[Address, Pair], address: Address, name: str, pair: Pair) -> None:
        if address in where:
            raise self._matches_nothing(name, f"factors for '{address}', which has some already")
        where[address] = pair

    def _check_rank(self, module: LoraModule, key: str, experts: int) -> None:
        found, rank = self.folder.tensor(module.a).shape[0], self.folder.config.rank(key)
        if found != rank * experts:
            raise self.folder.bad(module.a, f"{found} rows", f"{rank * experts}: rank {rank} by adapter_config.json")

    def replacements(self) -> Iterator[tuple[str, str]]:
        """Tensors that are saved whole, each allowed by the config."""
        for name, own in self.folder.replaced.items():
            found, shape = self.folder.tensor(own).shape, self.base.shape(name)
            if shape is None:
                raise self._matches_nothing(own, f"no base tensor {name!r}")
            if found != shape:
                raise self.folder.bad(
                    own, f"shape {list(found)}", f"{list(shape)} of the base", "A resized vocabulary is not merged."
                )
            if not self._is_saved(name):
                raise self._matches_nothing(own, f"a whole {name!r}, which neither modules_to_save nor bias names")
            yield name, own

    def _is_saved(self, name: str) -> bool:
        module, _, leaf = name.rpartition(".")
        embedding = "embed" in module.rpartition(".")[2] or (self.base.tied is not None and name in self.base.tied)
        by_bias = leaf == "bias" and self.folder.config.bias in ("all", "lora_only")
        return self.folder.config.saves(module) or by_bias or embedding or module == "lm_head"

    def _other_base(self, module: LoraModule, name: str, found: tuple[int, ...], expected: list[int]) -> BadInputError:
        return self.folder.bad(
            module.a,
            f"factors for {expected}, while base tensor {name!r} is {list(found)}",
            "an adapter of this base",
            f"Merge it into the base it was trained on ({self.folder.config.base_model_name_or_path or 'not named'}).",
        )

    def _matches_nothing(self, name: str, found: str) -> BadInputError:
        return BadInputError(
            "unknown_tensor",
            f"adapter {self.folder.path}: tensor {name.removeprefix(PREFIX)!r}",
            found=found,
            expected="every tensor of the adapter to belong to one of the base",
            next_step="Check that the adapter belongs to this base; nothing of it is left out.",
        )
