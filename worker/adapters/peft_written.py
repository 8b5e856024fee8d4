"""adapter_config.json as we write it: ranks, targets and saved modules in the shortest words that PEFT reads right."""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenConfig:
    """What there is to say of an adapter."""

    base: str
    alpha: float
    dropout: float = 0.0
    dora: bool = False
    ranks: Mapping[str, int]
    """Of every adapted module, under HF's name."""
    others: Collection[str]
    """Names of all other modules of the model."""
    saved: Collection[str] = field(default_factory=tuple[str, ...])
    """Modules that the adapter holds whole."""

    def as_json(self) -> bytes:
        """The file."""
        rank = Counter(self.ranks.values()).most_common(1)[0][0]
        values = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "r": rank,
            "lora_alpha": int(self.alpha) if self.alpha == int(self.alpha) else self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": self._targets(),
            "rank_pattern": self._rank_pattern(rank),
            "alpha_pattern": {},
            "modules_to_save": sorted(self.saved) or None,
            "use_dora": self.dora,
            "use_rslora": False,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
        }
        return json.dumps(values, indent=2).encode() + b"\n"

    def _targets(self) -> list[str]:
        """`q_proj` where every module of that name is adapted; else the whole names of those that are."""
        elsewhere = {_leaf(name) for name in self.others}
        return sorted({_leaf(name) if _leaf(name) not in elsewhere else name for name in self.ranks})

    def _rank_pattern(self, rank: int) -> dict[str, int]:
        by_leaf: dict[str, set[int]] = {}
        for name, own in self.ranks.items():
            by_leaf.setdefault(_leaf(name), set()).add(own)
        return {
            _leaf(name) if len(by_leaf[_leaf(name)]) == 1 else name: own
            for name, own in sorted(self.ranks.items())
            if own != rank
        }


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
