"""`ferry adapter export`, `import` and `extract`."""

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from worker.jobs.spec import AdapterExportSpec, AdapterExtractSpec, AdapterImportSpec, DType

from .arguments import BaseName, HFConfig, Replace, Source, Target, TensorCheck
from .failure import reading_arguments
from .locations import as_sent
from .output import on_exists, sent, tensor_check
from .running import JobOptions, PickleOptions, convert


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportAdapterOptions:
    """What a PEFT folder is to say."""

    base: Annotated[
        str | None, typer.Option(metavar="DIR", help="The model's config: an HF folder or a Megatron checkpoint.")
    ] = None
    base_name: BaseName = None
    verify: TensorCheck = None
    replace: Replace = False


def export_adapter(
    source: Source, target: Target, what: ExportAdapterOptions, here: PickleOptions, job: JobOptions
) -> None:
    """Megatron adapter -> PEFT folder."""
    with reading_arguments():
        spec = AdapterExportSpec(
            source=as_sent(source),
            target=as_sent(target),
            base=sent(what.base),
            base_name=what.base_name,
            verify=tensor_check(what.verify),
            on_exists=on_exists(what.replace),
        )
    convert(spec, here, job)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportAdapterOptions:
    """How a Megatron adapter is written."""

    base: Annotated[str, typer.Option(metavar="DIR", help="The model's config: an HF folder or a Megatron checkpoint.")]
    form: Annotated[
        Literal["auto", "canonical", "fused"],
        typer.Option(help="Of fused layers: factors for each of q, k and v, or one pair whose rank is their sum."),
    ] = "auto"
    iteration: Annotated[
        int | None, typer.Option(min=0, help="Write iter_0000000 of this number instead of release.")
    ] = None
    verify: TensorCheck = None
    replace: Replace = False


def import_adapter(
    source: Source, target: Target, what: ImportAdapterOptions, here: PickleOptions, job: JobOptions
) -> None:
    """PEFT folder -> Megatron adapter."""
    with reading_arguments():
        spec = AdapterImportSpec(
            source=as_sent(source),
            target=as_sent(target),
            base=as_sent(what.base),
            form=what.form,
            iteration=what.iteration,
            verify=tensor_check(what.verify),
            on_exists=on_exists(what.replace),
        )
    convert(spec, here, job)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractOptions:
    """What is written of a difference."""

    rank: Annotated[int, typer.Option(min=1, help="Of the factors.")]
    save_others: Annotated[
        bool, typer.Option("--save-others", help="Save modules whole that differ and are no linear layers.")
    ] = False
    dtype: Annotated[DType, typer.Option(help="Of the factors.")] = "fp32"
    hf_config: HFConfig = None
    base_name: BaseName = None
    verify: TensorCheck = None
    replace: Replace = False


def extract_adapter(
    source: Annotated[str, typer.Argument(metavar="BASE", help="A checkpoint, Hugging Face's or Megatron's.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="One of the same model, trained from it.")],
    target: Target,
    what: ExtractOptions,
    here: PickleOptions,
    job: JobOptions,
) -> None:
    """Two checkpoints -> PEFT folder of what lies between them."""
    with reading_arguments():
        spec = AdapterExtractSpec(
            source=as_sent(source),
            tuned=as_sent(tuned),
            target=as_sent(target),
            rank=what.rank,
            save_others=what.save_others,
            dtype=what.dtype,
            hf_config=sent(what.hf_config),
            base_name=what.base_name,
            verify=tensor_check(what.verify),
            on_exists=on_exists(what.replace),
        )
    convert(spec, here, job)
