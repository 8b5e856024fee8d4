"""`ferry setup`: its options in groups, each of which says which fields of the spec it gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from .arguments import Dtype, HFConfig, PartBytes, Replace, SetupChecks
from .failure import reading_arguments
from .output import size
from .room import refuse_without_room
from .running import JobOptions, PickleOptions, convert, place_of, plan_of, print_json
from .setup_fields import setup_spec
from .setup_plan import in_order

_CUT = "Parallelism"


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """What is set up, where and for whom."""

    source: Annotated[
        str | None, typer.Argument(help="HF folder, Megatron checkpoint, or a folder with config.json.")
    ] = None
    target: Annotated[str | None, typer.Argument(help="The directory to be set up.")] = None
    spec_file: Annotated[
        Path | None, typer.Option("--spec", metavar="YAML", help="The fields in a file; options win.")
    ] = None
    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="megatron-lm, megatron-bridge, verl, slime or nemo-rl.")
    ] = None

    def fields(self) -> Mapping[str, object]:
        return {"source": self.source, "target": self.target, "profile": self.profile}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How the run is spread over GPUs."""

    tp: Annotated[int | None, typer.Option(min=1, help="Tensor-parallel size.", rich_help_panel=_CUT)] = None
    pp: Annotated[int | None, typer.Option(min=1, help="Pipeline stages.", rich_help_panel=_CUT)] = None
    vpp: Annotated[int | None, typer.Option(min=1, help="Chunks of a stage.", rich_help_panel=_CUT)] = None
    cp: Annotated[int | None, typer.Option(min=1, help="Context-parallel size.", rich_help_panel=_CUT)] = None
    ep: Annotated[int | None, typer.Option(min=1, help="Expert-parallel size.", rich_help_panel=_CUT)] = None
    etp: Annotated[
        int | None, typer.Option(min=1, help="Experts' tensor-parallel size; default: TP.", rich_help_panel=_CUT)
    ] = None
    sequence_parallel: Annotated[
        bool | None, typer.Option(help="Default: where TP is above 1.", rich_help_panel=_CUT)
    ] = None
    first_stage_layers: Annotated[
        int | None, typer.Option(min=1, help="Layers of the first stage.", rich_help_panel=_CUT)
    ] = None
    last_stage_layers: Annotated[
        int | None, typer.Option(min=1, help="Layers of the last stage.", rich_help_panel=_CUT)
    ] = None
    pipeline_layout: Annotated[
        str | None,
        typer.Option(metavar="LAYOUT", help="Layers of each stage, such as 'Ettt|(tt|)*2,m|L'.", rich_help_panel=_CUT),
    ] = None
    world_size: Annotated[int | None, typer.Option(min=1, help="GPUs; default: the fewest.", rich_help_panel=_CUT)] = (
        None
    )

    def fields(self) -> Mapping[str, object]:
        return {
            "parallelism.tp_size": self.tp,
            "parallelism.pp_size": self.pp,
            "parallelism.vpp_size": self.vpp,
            "parallelism.cp_size": self.cp,
            "parallelism.ep_size": self.ep,
            "parallelism.etp_size": self.etp,
            "parallelism.sequence_parallel": self.sequence_parallel,
            "parallelism.first_stage_layers": self.first_stage_layers,
            "parallelism.last_stage_layers": self.last_stage_layers,
            "parallelism.pipeline_layout": self.pipeline_layout,
            "parallelism.world_size": self.world_size,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Where the weights come from."""

    base: Annotated[
        str | None, typer.Option(metavar="auto|import|link|reference", help="How the weights come to be there.")
    ] = None
    init_random: Annotated[
        bool, typer.Option("--init-random", help="Weights drawn from --seed; of the source only its config.")
    ] = False
    seed: Annotated[int | None, typer.Option(min=0, help="Of random weights, and the run's.")] = None
    hf_config: HFConfig = None
    dtype: Dtype = None
    layer_keys: Annotated[
        str | None,
        typer.Option(metavar="stacked|per-layer", help="Of Megatron's tensors: one for all layers, or each."),
    ] = None

    def fields(self) -> Mapping[str, object]:
        return {
            "base": self.base,
            "init": "random" if self.init_random else None,
            "seed": self.seed,
            "hf_config": self.hf_config,
            "dtype": self.dtype,
            "layer_keys": self.layer_keys,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Adapters, data parallelism and what a step holds."""

    peft: Annotated[
        str | None, typer.Option(metavar="lora|canonical_lora|dora", help="Adapters beside a frozen base.")
    ] = None
    peft_dim: Annotated[int | None, typer.Option(min=1, help="Their rank.")] = None
    peft_alpha: Annotated[float | None, typer.Option(help="Their alpha.")] = None
    init_adapter: Annotated[
        bool, typer.Option("--init-adapter", help="Write a freshly initialised adapter checkpoint.")
    ] = False
    fsdp: Annotated[bool, typer.Option("--fsdp", help="Megatron's FSDP instead of DDP.")] = False
    sequence_length: Annotated[int | None, typer.Option(min=1, help="Tokens of a sample.")] = None
    micro_batch_size: Annotated[int | None, typer.Option(min=1, help="Samples at once.")] = None
    recompute: Annotated[
        str | None, typer.Option(metavar="none|selective|full", help="Activations computed again.")
    ] = None
    gpu_memory: Annotated[
        str | None, typer.Option("--gpu-memory", metavar="SIZE", help="Of one GPU; default: 80GiB.")
    ] = None

    def fields(self) -> Mapping[str, object]:
        return {
            "peft.type": self.peft,
            "peft.dim": self.peft_dim,
            "peft.alpha": self.peft_alpha,
            "peft.init_adapter": self.init_adapter or None,
            "ddp.use_megatron_fsdp": self.fsdp or None,
            "sequence_length": self.sequence_length,
            "micro_batch_size": self.micro_batch_size,
            "recompute": self.recompute,
            "gpu_bytes": size(self.gpu_memory),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """How it is written."""

    part_bytes: PartBytes = None
    verify: SetupChecks = None
    verify_load: Annotated[
        bool, typer.Option("--verify-load", help="Load it with as many processes as the run has ranks, first.")
    ] = False
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Set up again; a base of the same source is kept, not copied.")
    ] = False
    replace: Replace = False
    verbose: Annotated[bool, typer.Option("--verbose", help="With --plan: what goes into each tensor too.")] = False

    def fields(self) -> Mapping[str, object]:
        return {
            "part_bytes": size(self.part_bytes),
            "verify": (*(self.verify or ()), *(("load",) if self.verify_load else ())) or None,
            "on_exists": "reuse" if self.reuse else "replace" if self.replace else None,
        }


def setup(
    places: Places,
    cut: Cut,
    weights: Weights,
    training: Training,
    written: Written,
    here: PickleOptions,
    job: JobOptions,
) -> None:
    """HF folder, Megatron checkpoint or config -> a directory that a trainer starts from."""
    with reading_arguments():
        given = [group.fields() for group in (places, cut, weights, training, written)]
        spec = setup_spec(places.spec_file, {name: value for fields in given for name, value in fields.items()})
    if not job.plan:
        if written.verbose:
            raise typer.BadParameter("--verbose is for --plan, which shows what goes into each tensor")
        convert(spec, here, job)
        return
    job.refuse_beside_plan()
    found = plan_of(spec, place_of(here, job.server, job.asks))
    print_json(in_order(found, verbose=written.verbose))
    refuse_without_room(found)
