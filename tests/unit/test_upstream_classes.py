"""The tables of upstream's fields are upstream's own."""

from dataclasses import fields

import pytest
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
from megatron.training.models.gpt import GPTModelConfig
from megatron.training.models.hybrid import HybridModelConfig

from worker.integration.variants import VariantGPTModelConfig
from worker.mapping.family import ONLY_HF, Family
from worker.mapping.record import Record
from worker.mapping.registry import FAMILIES
from worker.mapping.rope import UNDECLARED_YARN
from worker.mapping.upstream_classes import VARIANT_FIELDS, ModelKind, model_kind, outer_fields

CLASSES: dict[ModelKind, type] = {
    "gpt": GPTModelConfig,
    "hybrid": HybridModelConfig,
    "variant": VariantGPTModelConfig,
}
PLAIN, LATENT = Record({}, "values"), Record({"multi_latent_attention": True}, "values")


def names(config_class: type) -> set[str]:
    """The fields that it declares."""
    return {field.name for field in fields(config_class)}


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    ("values", "transformer"), [(PLAIN, TransformerConfig), (LATENT, MLATransformerConfig)], ids=["plain", "latent"]
)
def test_an_outer_field_is_the_outer_classes_alone(kind: ModelKind, values: Record, transformer: type) -> None:
    outer = outer_fields(kind, values)

    assert outer <= names(CLASSES[kind])
    assert outer.isdisjoint(names(transformer))


def test_the_fields_of_our_variant_are_those_that_it_adds() -> None:
    assert names(VariantGPTModelConfig) - names(GPTModelConfig) == VARIANT_FIELDS


@pytest.mark.parametrize("name", sorted(VARIANT_FIELDS))
def test_a_model_that_needs_what_upstream_lacks_has_our_class(name: str) -> None:
    assert model_kind("gpt", Record({name: True}, "values")) == "variant"
    assert model_kind("gpt", PLAIN) == "gpt"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_megatron_name_that_a_page_may_write_is_declared(family: Family) -> None:
    written = {name for codec in family.fields for name in codec.mcore if not name.startswith(ONLY_HF)}

    declared = {name for config_class in (*CLASSES.values(), MLATransformerConfig) for name in names(config_class)}
    assert written <= declared | set(UNDECLARED_YARN)
