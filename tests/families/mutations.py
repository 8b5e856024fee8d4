"""Mutants of a family's page: each rule and each config field removed, or swapped with one that it can be taken for."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

from worker.mapping.family import Family
from worker.mapping.fields import Field, Fixed, Renamed
from worker.mapping.rules import Rule

# Values that no forward pass and no tensor shows; a table of their own pins them (test_config_table.py).
UNSEEN = frozenset(
    {
        "attention_backend",
        "attention_dropout",
        "attention_softmax_in_fp32",
        "bias_activation_fusion",
        "bias_dropout_fusion",
        "apply_rope_fusion",
        "cross_entropy_loss_fusion",
        "deallocate_pipeline_outputs",
        "first_last_layers_bf16",
        "hidden_dropout",
        "init_method_std",
        "is_hybrid_model",
        "masked_softmax_fusion",
        "moe_aux_loss_coeff",
        "moe_grouped_gemm",
        "moe_permute_fusion",
        "moe_router_bias_update_rate",
        "moe_router_dtype",
        "moe_router_load_balancing_type",
        "moe_shared_expert_overlap",
        "moe_token_dispatcher_type",
        "mtp_loss_scaling_factor",
        "persist_layer_norm",
        "seq_length",
    }
)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A page with one thing wrong."""

    what: str
    family: Family

    def __str__(self) -> str:
        return f"{self.family.name}: {self.what}"


def mutants(family: Family) -> Iterator[Mutant]:
    """All of a family's mutants."""
    yield from _without_a_rule(family)
    yield from _with_swapped_parts(family)
    yield from _with_swapped_rules(family)
    yield from _without_a_field(family)
    yield from _with_swapped_fields(family)


def _without_a_rule(family: Family) -> Iterator[Mutant]:
    for number, rule in enumerate(family.rules):
        rules = family.rules[:number] + family.rules[number + 1 :]
        yield Mutant(f"no rule for {rule.mcore}", replace(family, rules=rules))
    for number, fill in enumerate(family.fills):
        fills = family.fills[:number] + family.fills[number + 1 :]
        yield Mutant(f"no fill for {fill.mcore}", replace(family, fills=fills))


def _with_swapped_parts(family: Family) -> Iterator[Mutant]:
    """q for k, gate for up: HF tensors of one rule, where their shapes allow it."""
    for number, rule in enumerate(family.rules):
        for first, second in combinations(range(len(rule.hf)), 2):
            parts = list(rule.hf)
            parts[first], parts[second] = parts[second], parts[first]
            if rule.hf[first].shape == rule.hf[second].shape:
                swapped = replace(rule, hf=tuple(parts))
                name = rule.hf[first].name.rpartition(".layers.")[2]
                yield Mutant(f"{name} swapped", _with_rule(family, number, swapped))


def _with_swapped_rules(family: Family) -> Iterator[Mutant]:
    """The target of each rule and of the next one that takes tensors of the same shapes."""
    for first, one in enumerate(family.rules):
        alike = ((second, other) for second, other in enumerate(family.rules[first + 1 :], first + 1))
        found = next(((second, other) for second, other in alike if _alike(one, other)), None)
        if found:
            second, other = found
            mutant = _with_rule(family, first, replace(one, mcore=other.mcore))
            swapped = _with_rule(mutant, second, replace(other, mcore=one.mcore))
            yield Mutant(f"{one.mcore} for {other.mcore}", swapped)


def _alike(one: Rule, other: Rule) -> bool:
    shapes = [[(tensor.shape, tensor.stacked) for tensor in rule.hf] for rule in (one, other)]
    alike = shapes[0] == shapes[1] and one.layers is other.layers and one.when is other.when
    return alike and ("{expert}" in one.hf[0].name) == ("{expert}" in other.hf[0].name)


def _with_rule(family: Family, number: int, rule: Rule) -> Family:
    return replace(family, rules=(*family.rules[:number], rule, *family.rules[number + 1 :]))


def _without_a_field(family: Family) -> Iterator[Mutant]:
    for number, codec in enumerate(family.fields):
        if isinstance(codec, Fixed):
            for name in sorted(codec.values.keys() - UNSEEN):
                rest = Fixed({key: value for key, value in codec.values.items() if key != name})
                yield Mutant(f"no {name}", _with_field(family, number, rest))
        else:
            fields = family.fields[:number] + family.fields[number + 1 :]
            yield Mutant(f"no {codec.hf or codec.mcore}", replace(family, fields=fields))


def _with_swapped_fields(family: Family) -> Iterator[Mutant]:
    renamed = [
        (number, codec)
        for number, codec in enumerate(family.fields)
        if isinstance(codec, Renamed) and codec.mcore_name not in UNSEEN
    ]
    for (first, one), (second, other) in pairwise(sorted(renamed, key=lambda row: row[1].kind.__name__)):
        if one.kind is other.kind and one.hf_name != other.hf_name:
            mutant = _with_field(family, first, replace(one, mcore_name=other.mcore_name))
            swapped = _with_field(mutant, second, replace(other, mcore_name=one.mcore_name))
            yield Mutant(f"{one.hf_name} for {other.hf_name}", swapped)


def _with_field(family: Family, number: int, codec: Field) -> Family:
    return replace(family, fields=(*family.fields[:number], codec, *family.fields[number + 1 :]))
