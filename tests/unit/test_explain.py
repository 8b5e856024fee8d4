"""Every Megatron value says where it comes from, and the families say what was proven of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from worker.jobs.errors import BadInputError
from worker.mapping.explain import explain
from worker.mapping.proofs import LAWS, RECORD, page_digest, proof_of, refused, unproven
from worker.mapping.record import Record
from worker.mapping.registry import FAMILIES, family_named, family_of

MISTRAL = {
    "model_type": "mistral",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "rope_theta": 5000.0,
    "use_cache": True,
}


def origins(config: dict[str, object]) -> dict[str, str]:
    hf = Record(config, "config.json")
    values, _ = explain(family_of(hf), hf)
    return {line.mcore: line.origin for line in values}


def test_each_value_says_where_it_comes_from() -> None:
    said = origins(MISTRAL)

    assert said["ffn_hidden_size"] == "HF field"
    assert said["layernorm_epsilon"] == "HF class default"
    assert said["make_vocab_size_divisible_by"] == "derived"
    assert said["normalization"] == "family default"


def test_the_values_are_those_of_the_mapping() -> None:
    hf = Record(MISTRAL, "config.json")
    family = family_of(hf)

    values, ignored = explain(family, hf)

    assert {line.mcore: line.value for line in values} == dict(family.to_mcore(hf).values)
    assert {(line.hf, line.value) for line in ignored} == {("model_type", "mistral"), ("use_cache", True)}


def test_an_unknown_field_is_refused_here_too() -> None:
    with pytest.raises(BadInputError, match="colour"):
        origins(MISTRAL | {"colour": "blue"})


def test_the_command_explains_a_config_on_this_machine(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MISTRAL))
    command = [str(Path(sys.executable).with_name("ferry")), "config", str(tmp_path), "--explain"]

    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    explained = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)

    assert "hidden_size = 64" in table
    assert "chooses whether keys and values are kept" in table
    assert explained["family"] == "mistral"


def test_the_record_speaks_of_registered_families_and_known_laws() -> None:
    record = json.loads(RECORD.read_text())["families"]

    assert record.keys() <= {family.name for family in FAMILIES}
    assert all(found["passed"].keys() <= set(LAWS) for found in record.values())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_is_proven_or_says_what_is_not(family: object) -> None:
    page = family_named(family.name, "test")  # pyright: ignore[reportAttributeAccessIssue]
    proof = proof_of(page)

    missing = [law for law in LAWS if proof is None or not proof.passed.get(law)]

    assert [row for row in unproven(page) if row.startswith("law: ")] == [f"law: {law}" for law in missing]
    assert len(page_digest(page)) == 16


def test_what_a_page_refuses_is_listed() -> None:
    assert any("attention_bias" in row for row in refused(family_named("deepseek_v3", "test")))
