"""`ferry merge`."""

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from worker.jobs.errors import BadInputError
from worker.jobs.spec import AdapterUse, Combine, MergeSpec

from .arguments import Checks, Dtype, HFConfig, KeysOfLayers, PartBytes, Replace, ShardBytes, Target
from .failure import reading_arguments
from .locations import as_sent, no_weight, weighted
from .output import checks, on_exists, sent, size
from .running import JobOptions, PickleOptions, convert


@dataclass(frozen=True, slots=True, kw_only=True)
class Combining:
    """How adapters come together."""

    adapter: Annotated[
        list[str],
        typer.Option("--adapter", metavar="DIR[:WEIGHT]", help="An adapter, PEFT's or Megatron's; may be given again."),
    ]
    combine: Annotated[Combine, typer.Option(help="How several adapters come together, under PEFT's names.")] = (
        "sequential"
    )
    density: Annotated[
        float | None, typer.Option(min=0, max=1, help="The share of values that ties, dare and magnitude_prune keep.")
    ] = None
    majority_sign_method: Annotated[
        Literal["total", "frequency"], typer.Option(help="How ties and dare_ties elect a sign.")
    ] = "total"
    svd_rank: Annotated[int | None, typer.Option(min=1, help="The rank that svd leaves.")] = None
    svd_clamp: Annotated[
        float | None, typer.Option(min=0.5, max=1, help="The quantile of values that svd cuts larger ones to.")
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Of what dare drops.")] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """What is written."""

    to: Annotated[Literal["hf", "megatron"], typer.Option(help="The format of DST.")] = "hf"
    layer_keys: KeysOfLayers = "stacked"
    rounding: Annotated[
        Literal["exact", "peft"], typer.Option(help="Once, after all sums in fp32; or in PEFT's own steps.")
    ] = "exact"
    dequantize: Annotated[bool, typer.Option("--dequantize", help="Write a quantized base plain.")] = False
    hf_config: HFConfig = None
    max_shard_bytes: ShardBytes = None
    dtype: Dtype = None
    part_bytes: PartBytes = None
    verify: Checks = None
    replace: Replace = False


def merge(
    source: Annotated[str, typer.Argument(metavar="BASE", help="A checkpoint, Hugging Face's or Megatron's.")],
    target: Target,
    how: Combining,
    what: MergeOptions,
    here: PickleOptions,
    job: JobOptions,
) -> None:
    """A base with LoRA adapters folded into its weights."""
    with reading_arguments():
        spec = MergeSpec(
            source=as_sent(source),
            target=as_sent(target),
            adapters=tuple(map(_adapter, how.adapter)),
            combine=how.combine,
            density=how.density,
            majority_sign_method=how.majority_sign_method,
            svd_rank=how.svd_rank,
            svd_clamp=how.svd_clamp,
            seed=how.seed,
            to=what.to,
            layer_keys=what.layer_keys,
            rounding=what.rounding,
            dequantize=what.dequantize,
            hf_config=sent(what.hf_config),
            max_shard_bytes=size(what.max_shard_bytes),
            dtype=what.dtype,
            part_bytes=size(what.part_bytes),
            verify=checks(what.verify),
            on_exists=on_exists(what.replace),
        )
    convert(spec, here, job)


def _adapter(typed: str) -> AdapterUse:
    if no_weight(typed):
        path, _, weight = typed.rpartition(":")
        raise BadInputError(
            "bad_request",
            f"--adapter {typed}",
            found=f"{weight!r} after folder {path}",
            expected="a number: how much of the adapter is added",
            next_step=f"Write a weight such as {path}:0.5, or {path} alone for all of it.",
        )
    path, weight = weighted(typed)
    return AdapterUse(path=as_sent(path), weight=weight)
