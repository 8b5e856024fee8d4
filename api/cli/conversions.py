"""`ferry import` and `ferry export`."""

from dataclasses import dataclass
from typing import Annotated

import typer

from worker.jobs.spec import ExportSpec, ImportSpec, Quantization

from .arguments import Checks, Dtype, HFConfig, KeysOfLayers, PartBytes, Replace, ShardBytes, Source, Target
from .failure import reading_arguments
from .locations import as_sent
from .output import checks, on_exists, sent, size
from .running import JobOptions, LocalOptions, PickleOptions, convert


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What is written of an HF folder."""

    iteration: Annotated[
        int | None, typer.Option(min=0, help="Write iter_0000000 of this number instead of release.")
    ] = None
    dtype: Dtype = None
    vocab_padding: Annotated[
        int | None, typer.Option(min=1, help="Pad the vocabulary with zeros for this tensor-parallel size.")
    ] = None
    layer_keys: KeysOfLayers = "stacked"
    part_bytes: PartBytes = None
    verify: Checks = None
    replace: Replace = False


def import_(source: Source, target: Target, what: ImportOptions, here: LocalOptions, job: JobOptions) -> None:
    """Hugging Face folder -> Megatron-Core torch_dist checkpoint."""
    with reading_arguments():
        spec = ImportSpec(
            source=as_sent(source),
            target=as_sent(target),
            iteration=what.iteration,
            dtype=what.dtype,
            vocab_padding=what.vocab_padding,
            layer_keys=what.layer_keys,
            part_bytes=size(what.part_bytes),
            verify=checks(what.verify),
            on_exists=on_exists(what.replace),
        )
    convert(spec, here, job)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What is written of a Megatron checkpoint."""

    hf_config: HFConfig = None
    max_shard_bytes: ShardBytes = None
    dtype: Dtype = None
    quantize: Annotated[
        Quantization | None, typer.Option(help="Linear layers in fp8 with a scale for each 128 x 128 block.")
    ] = None
    part_bytes: PartBytes = None
    verify: Checks = None
    replace: Replace = False


def export(source: Source, target: Target, what: ExportOptions, here: PickleOptions, job: JobOptions) -> None:
    """Megatron-Core checkpoint -> Hugging Face folder."""
    with reading_arguments():
        spec = ExportSpec(
            source=as_sent(source),
            target=as_sent(target),
            hf_config=sent(what.hf_config),
            max_shard_bytes=size(what.max_shard_bytes),
            dtype=what.dtype,
            quantize=what.quantize,
            part_bytes=size(what.part_bytes),
            verify=checks(what.verify),
            on_exists=on_exists(what.replace),
        )
    convert(spec, here, job)
