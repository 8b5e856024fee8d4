"""The `config` job: upstream's config object for an HF config, as JSON. No weights, no distributed state."""

from pathlib import Path

from ..checkpoints.hf_folder import read_config
from ..jobs.spec import ConfigSpec
from ..jobs.state import ConfigResult
from ..mapping.bindings import Model
from ..mapping.family import megatron_values
from ..mapping.record import Record
from ..mapping.registry import family_of
from .context import Answer, JobContext


def run(spec: ConfigSpec, context: JobContext) -> Answer:
    """Map, build, answer."""
    model = read_model(context.locations.resolve_source(spec.source))
    context.model_configs.start(megatron_values(model.family, model.mcore, spec.source))
    return Answer(result=ConfigResult(megatron_config=context.model_configs.result()))


def read_model(source: Path) -> Model:
    """An HF folder's (or config.json's) model, mapped.

    BadInputError on any field that is not understood, and on sizes that no model has, as a plan of it would raise.
    """
    model = model_of(read_record(source))
    model.family.sizes(model.mcore)
    return model


def read_record(source: Path) -> Record:
    """An HF folder's (or config.json's) config as it stands."""
    return Record(read_config(source), str(source if source.is_file() else source / "config.json"))


def model_of(hf: Record) -> Model:
    """The config's model, mapped. BadInputError on any field that is not understood."""
    family = family_of(hf)
    return Model(family=family, hf=hf, mcore=family.to_mcore(hf))
