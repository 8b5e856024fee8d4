"""The commands of `ferry`. What is heavy is imported where it is used, so that help comes at once."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, assert_never, cast

import typer

from worker.jobs.sizes import parse_size
from worker.jobs.spec import (
    AdapterExportSpec,
    AdapterExtractSpec,
    AdapterImportSpec,
    AdapterUse,
    Check,
    Combine,
    ConfigSpec,
    DType,
    ExportSpec,
    ImportSpec,
    JobSpec,
    MergeSpec,
    OnExists,
    Quantization,
    VerifySpec,
)
from worker.jobs.state import CheckpointResult, ConfigResult, Result, VerifyResult

from ..settings import server_url
from .arguments import (
    After,
    AllowPickle,
    AsJson,
    BaseName,
    Checks,
    Dtype,
    Gpus,
    HFConfig,
    Jobs,
    KeysOfLayers,
    Labels,
    Local,
    Memory,
    NoWait,
    PartBytes,
    Plan,
    Rate,
    Replace,
    Server,
    SetupChecks,
    ShardBytes,
    Source,
    Target,
    TensorCheck,
    Timeout,
    Urgency,
)
from .failure import reading_arguments
from .locations import as_sent, weighted
from .places import Here, Place, There
from .room import refuse_without_room
from .setup_fields import setup_spec
from .setup_plan import in_order

_CUT = "Parallelism"
app = typer.Typer(
    name="ferry",
    help="Moves model checkpoints between Hugging Face and Megatron-Core.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_DEFAULT_JOBS = min(4, os.cpu_count() or 1)


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@app.command("import")
def import_(
    source: Source,
    target: Target,
    iteration: Annotated[
        int | None, typer.Option(min=0, help="Write iter_0000000 of this number instead of release.")
    ] = None,
    dtype: Dtype = None,
    vocab_padding: Annotated[
        int | None, typer.Option(min=1, help="Pad the vocabulary with zeros for this tensor-parallel size.")
    ] = None,
    layer_keys: KeysOfLayers = "stacked",
    part_bytes: PartBytes = None,
    verify: Checks = None,
    replace: Replace = False,
    local: Local = False,
    jobs: Jobs = _DEFAULT_JOBS,
    rate: Rate = None,
    plan: Plan = False,
    no_wait: NoWait = False,
    server: Server = None,
    priority: Urgency = None,
    gpus: Gpus = None,
    memory: Memory = None,
    timeout: Timeout = None,
    after: After = None,
    label: Labels = None,
) -> None:
    """Hugging Face folder -> Megatron-Core torch_dist checkpoint."""
    with reading_arguments():
        spec = ImportSpec(
            source=as_sent(source),
            target=as_sent(target),
            iteration=iteration,
            dtype=dtype,
            vocab_padding=vocab_padding,
            layer_keys=layer_keys,
            part_bytes=_size(part_bytes) if part_bytes else None,
            verify=cast("tuple[Check, ...]", tuple(verify or ())),
            on_exists=_on_exists(replace),
        )
    asks = _asks(priority=priority, gpus=gpus, memory=memory, timeout=timeout, after=after, label=label)
    _convert(spec, _place(server, local=local, jobs=jobs, rate=rate, asks=asks), plan=plan, no_wait=no_wait)


@app.command("export")
def export(
    source: Source,
    target: Target,
    hf_config: HFConfig = None,
    max_shard_bytes: ShardBytes = None,
    dtype: Dtype = None,
    quantize: Annotated[
        Quantization | None, typer.Option(help="Linear layers in fp8 with a scale for each 128 x 128 block.")
    ] = None,
    part_bytes: PartBytes = None,
    verify: Checks = None,
    replace: Replace = False,
    local: Local = False,
    jobs: Jobs = _DEFAULT_JOBS,
    rate: Rate = None,
    allow_pickle: AllowPickle = False,
    plan: Plan = False,
    no_wait: NoWait = False,
    server: Server = None,
    priority: Urgency = None,
    gpus: Gpus = None,
    memory: Memory = None,
    timeout: Timeout = None,
    after: After = None,
    label: Labels = None,
) -> None:
    """Megatron-Core checkpoint -> Hugging Face folder."""
    with reading_arguments():
        spec = ExportSpec(
            source=as_sent(source),
            target=as_sent(target),
            hf_config=as_sent(hf_config) if hf_config else None,
            max_shard_bytes=_size(max_shard_bytes) if max_shard_bytes else None,
            dtype=dtype,
            quantize=quantize,
            part_bytes=_size(part_bytes) if part_bytes else None,
            verify=cast("tuple[Check, ...]", tuple(verify or ())),
            on_exists=_on_exists(replace),
        )
    asks = _asks(priority=priority, gpus=gpus, memory=memory, timeout=timeout, after=after, label=label)
    place = _place(server, local=local, jobs=jobs, rate=rate, allow_pickle=allow_pickle, asks=asks)
    _convert(spec, place, plan=plan, no_wait=no_wait)


@app.command("merge")
def merge(
    source: Annotated[str, typer.Argument(metavar="BASE", help="A checkpoint, Hugging Face's or Megatron's.")],
    target: Target,
    adapter: Annotated[
        list[str],
        typer.Option("--adapter", metavar="DIR[:WEIGHT]", help="An adapter, PEFT's or Megatron's; may be given again."),
    ],
    combine: Annotated[
        Combine, typer.Option(help="How several adapters come together, under PEFT's names.")
    ] = "sequential",
    density: Annotated[
        float | None, typer.Option(min=0, max=1, help="The share of values that ties, dare and magnitude_prune keep.")
    ] = None,
    majority_sign_method: Annotated[
        Literal["total", "frequency"], typer.Option(help="How ties and dare_ties elect a sign.")
    ] = "total",
    svd_rank: Annotated[int | None, typer.Option(min=1, help="The rank that svd leaves.")] = None,
    svd_clamp: Annotated[
        float | None, typer.Option(min=0.5, max=1, help="The quantile of values that svd cuts larger ones to.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what dare drops.")] = 0,
    to: Annotated[Literal["hf", "megatron"], typer.Option(help="The format of DST.")] = "hf",
    layer_keys: KeysOfLayers = "stacked",
    rounding: Annotated[
        Literal["exact", "peft"], typer.Option(help="Once, after all sums in fp32; or in PEFT's own steps.")
    ] = "exact",
    dequantize: Annotated[bool, typer.Option("--dequantize", help="Write a quantized base plain.")] = False,
    hf_config: HFConfig = None,
    max_shard_bytes: ShardBytes = None,
    dtype: Dtype = None,
    part_bytes: PartBytes = None,
    verify: Checks = None,
    replace: Replace = False,
    local: Local = False,
    jobs: Jobs = _DEFAULT_JOBS,
    rate: Rate = None,
    allow_pickle: AllowPickle = False,
    plan: Plan = False,
    no_wait: NoWait = False,
    server: Server = None,
    priority: Urgency = None,
    gpus: Gpus = None,
    memory: Memory = None,
    timeout: Timeout = None,
    after: After = None,
    label: Labels = None,
) -> None:
    """A base with LoRA adapters folded into its weights."""
    with reading_arguments():
        spec = MergeSpec(
            source=as_sent(source),
            target=as_sent(target),
            adapters=tuple(map(_adapter, adapter)),
            combine=combine,
            density=density,
            majority_sign_method=majority_sign_method,
            svd_rank=svd_rank,
            svd_clamp=svd_clamp,
            seed=seed,
            to=to,
            layer_keys=layer_keys,
            rounding=rounding,
            dequantize=dequantize,
            hf_config=as_sent(hf_config) if hf_config else None,
            max_shard_bytes=_size(max_shard_bytes) if max_shard_bytes else None,
            dtype=dtype,
            part_bytes=_size(part_bytes) if part_bytes else None,
            verify=cast("tuple[Check, ...]", tuple(verify or ())),
            on_exists=_on_exists(replace),
        )
    asks = _asks(priority=priority, gpus=gpus, memory=memory, timeout=timeout, after=after, label=label)
    place = _place(server, local=local, jobs=jobs, rate=rate, allow_pickle=allow_pickle, asks=asks)
    _convert(spec, place, plan=plan, no_wait=no_wait)


@app.command("setup")
def setup(
    source: Annotated[
        str | None, typer.Argument(help="HF folder, Megatron checkpoint, or a folder with config.json.")
    ] = None,
    target: Annotated[str | None, typer.Argument(help="The directory to be set up.")] = None,
    spec_file: Annotated[
        Path | None, typer.Option("--spec", metavar="YAML", help="The fields in a file; options win.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="megatron-lm, megatron-bridge, verl, slime or nemo-rl.")
    ] = None,
    tp: Annotated[int | None, typer.Option(min=1, help="Tensor-parallel size.", rich_help_panel=_CUT)] = None,
    pp: Annotated[int | None, typer.Option(min=1, help="Pipeline stages.", rich_help_panel=_CUT)] = None,
    vpp: Annotated[int | None, typer.Option(min=1, help="Chunks of a stage.", rich_help_panel=_CUT)] = None,
    cp: Annotated[int | None, typer.Option(min=1, help="Context-parallel size.", rich_help_panel=_CUT)] = None,
    ep: Annotated[int | None, typer.Option(min=1, help="Expert-parallel size.", rich_help_panel=_CUT)] = None,
    etp: Annotated[
        int | None, typer.Option(min=1, help="Experts' tensor-parallel size; default: TP.", rich_help_panel=_CUT)
    ] = None,
    sequence_parallel: Annotated[
        bool | None, typer.Option(help="Default: where TP is above 1.", rich_help_panel=_CUT)
    ] = None,
    first_stage_layers: Annotated[
        int | None, typer.Option(min=1, help="Layers of the first stage.", rich_help_panel=_CUT)
    ] = None,
    last_stage_layers: Annotated[
        int | None, typer.Option(min=1, help="Layers of the last stage.", rich_help_panel=_CUT)
    ] = None,
    pipeline_layout: Annotated[
        str | None,
        typer.Option(metavar="LAYOUT", help="Layers of each stage, such as 'Ettt|(tt|)*2,m|L'.", rich_help_panel=_CUT),
    ] = None,
    world_size: Annotated[
        int | None, typer.Option(min=1, help="GPUs; default: the fewest.", rich_help_panel=_CUT)
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="auto|import|link|reference", help="How the weights come to be there.")
    ] = None,
    init_random: Annotated[
        bool, typer.Option("--init-random", help="Weights drawn from --seed; of the source only its config.")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Of random weights, and the run's.")] = None,
    hf_config: HFConfig = None,
    dtype: Dtype = None,
    layer_keys: Annotated[
        str | None,
        typer.Option(metavar="stacked|per-layer", help="Of Megatron's tensors: one for all layers, or each."),
    ] = None,
    peft: Annotated[
        str | None, typer.Option(metavar="lora|canonical_lora|dora", help="Adapters beside a frozen base.")
    ] = None,
    peft_dim: Annotated[int | None, typer.Option(min=1, help="Their rank.")] = None,
    peft_alpha: Annotated[float | None, typer.Option(help="Their alpha.")] = None,
    init_adapter: Annotated[
        bool, typer.Option("--init-adapter", help="Write a freshly initialised adapter checkpoint.")
    ] = False,
    fsdp: Annotated[bool, typer.Option("--fsdp", help="Megatron's FSDP instead of DDP.")] = False,
    sequence_length: Annotated[int | None, typer.Option(min=1, help="Tokens of a sample.")] = None,
    micro_batch_size: Annotated[int | None, typer.Option(min=1, help="Samples at once.")] = None,
    recompute: Annotated[
        str | None, typer.Option(metavar="none|selective|full", help="Activations computed again.")
    ] = None,
    gpu_memory: Annotated[
        str | None, typer.Option("--gpu-memory", metavar="SIZE", help="Of one GPU; default: 80GiB.")
    ] = None,
    part_bytes: PartBytes = None,
    verify: SetupChecks = None,
    verify_load: Annotated[
        bool, typer.Option("--verify-load", help="Load it with as many processes as the run has ranks, first.")
    ] = False,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Set up again; a base of the same source is kept, not copied.")
    ] = False,
    replace: Replace = False,
    local: Local = False,
    jobs: Jobs = _DEFAULT_JOBS,
    rate: Rate = None,
    allow_pickle: AllowPickle = False,
    plan: Plan = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="With --plan: what goes into each tensor too.")] = False,
    no_wait: NoWait = False,
    server: Server = None,
    priority: Urgency = None,
    gpus: Gpus = None,
    memory: Memory = None,
    timeout: Timeout = None,
    after: After = None,
    label: Labels = None,
) -> None:
    """HF folder, Megatron checkpoint or config -> a directory that a trainer starts from."""
    with reading_arguments():
        spec = setup_spec(
            spec_file,
            {
                "source": source,
                "target": target,
                "profile": profile,
                "parallelism.tp_size": tp,
                "parallelism.pp_size": pp,
                "parallelism.vpp_size": vpp,
                "parallelism.cp_size": cp,
                "parallelism.ep_size": ep,
                "parallelism.etp_size": etp,
                "parallelism.sequence_parallel": sequence_parallel,
                "parallelism.first_stage_layers": first_stage_layers,
                "parallelism.last_stage_layers": last_stage_layers,
                "parallelism.pipeline_layout": pipeline_layout,
                "parallelism.world_size": world_size,
                "base": base,
                "init": "random" if init_random else None,
                "seed": seed,
                "hf_config": hf_config,
                "dtype": dtype,
                "layer_keys": layer_keys,
                "peft.type": peft,
                "peft.dim": peft_dim,
                "peft.alpha": peft_alpha,
                "peft.init_adapter": init_adapter or None,
                "ddp.use_megatron_fsdp": fsdp or None,
                "sequence_length": sequence_length,
                "micro_batch_size": micro_batch_size,
                "recompute": recompute,
                "gpu_bytes": _size(gpu_memory) if gpu_memory else None,
                "part_bytes": _size(part_bytes) if part_bytes else None,
                "verify": (*(verify or ()), *(("load",) if verify_load else ())) or None,
                "on_exists": "reuse" if reuse else "replace" if replace else None,
            },
        )
    asks = _asks(priority=priority, gpus=gpus, memory=memory, timeout=timeout, after=after, label=label)
    place = _place(server, local=local, jobs=jobs, rate=rate, allow_pickle=allow_pickle, asks=asks)
    if plan:
        found = _plan(spec, place)
        _print(in_order(found, verbose=verbose))
        refuse_without_room(found)
        return
    _convert(spec, place, plan=False, no_wait=no_wait)


adapter_commands = typer.Typer(
    help="Adapters between PEFT's format and Megatron's, and out of two checkpoints.", no_args_is_help=True
)
app.add_typer(adapter_commands, name="adapter")


@adapter_commands.command("export")
def export_adapter(
    source: Source,
    target: Target,
    base: Annotated[
        str | None, typer.Option(metavar="DIR", help="The model's config: an HF folder or a Megatron checkpoint.")
    ] = None,
    base_name: BaseName = None,
    verify: TensorCheck = None,
    replace: Replace = False,
    local: Local = False,
    jobs: Jobs = _DEFAULT_JOBS,
    rate: Rate = None,
    allow_pickle: AllowPickle = False,
    plan: Plan = False,
    no_wait: NoWait = False,
    server: Server = None,
    priority: Urgency = None,
    gpus: Gpus = None,
    memory: Memory = None,
    timeout: Timeout = None,
    after: After = None,
    label: Labels = None,
) -> None:
    """Megatron adapter -> PEFT folder."""
    with reading_arguments():
        spec = AdapterExportSpec(
            source=as_sent(source),
            target=as_sent(target),
            base=as_sent(base) if base else None,
            base_name=base_name,
            verify=cast("tuple[Literal['tensors'], ...]", tuple(verify or ())),
            on_exists=_on_exists(replace),
        )
    asks = _asks(priority=priority, gpus=gpus, memory=memory, timeout=timeout, after=after, label=label)
    place = _place(server, local=local, jobs=jobs, rate=rate, allow_pickle=allow_pickle, asks=asks)
    _convert(spec, place, plan=plan, no_wait=no_wait)


@adapter_commands.command("import")
def import_adapter(
    source: Source,
    target: Target,
    base: Annotated[
        str, typer.Option(metavar="DIR", help="The model's config: an HF folder or a Megatron checkpoint.")
    ],
    form: Annotated[
        Literal["auto", "canonical", "fused"],
        typer.Option(help="Of fused layers: factors for each of q, k and v, or one pair whose rank is their sum."),
    ] = "auto",
    iteration: Annotated[
        int | None, typer.Option(min=0, help="Write iter_0000000 of this number instead of release.")
    ] = None,
    verify: TensorCheck = None,
    replace: Replace = False,
    local: Local = False,
    jobs: Jobs = _DEFAULT_JOBS,
    rate: Rate = None,
    allow_pickle: AllowPickle = False,
    plan: Plan = False,
    no_wait: NoWait = False,
    server: Server = None,
    priority: Urgency = None,
    gpus: Gpus = None,
    memory: Memory = None,
    timeout: Timeout = None,
    after: After = None,
    label: Labels = None,
) -> None:
    """PEFT folder -> Megatron adapter."""
    with reading_arguments():
        spec = AdapterImportSpec(
            source=as_sent(source),
            target=as_sent(target),
            base=as_sent(base),
            form=form,
            iteration=iteration,
            verify=cast("tuple[Literal['tensors'], ...]", tuple(verify or ())),
            on_exists=_on_exists(replace),
        )
    asks = _asks(priority=priority, gpus=gpus, memory=memory, timeout=timeout, after=after, label=label)
    place = _place(server, local=local, jobs=jobs, rate=rate, allow_pickle=allow_pickle, asks=asks)
    _convert(spec, place, plan=plan, no_wait=no_wait)


@adapter_commands.command("extract")
def extract_adapter(
    source: Annotated[str, typer.Argument(metavar="BASE", help="A checkpoint, Hugging Face's or Megatron's.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="One of the same model, trained from it.")],
    target: Target,
    rank: Annotated[int, typer.Option(min=1, help="Of the factors.")],
    save_others: Annotated[
        bool, typer.Option("--save-others", help="Save modules whole that differ and are no linear layers.")
    ] = False,
    dtype: Annotated[DType, typer.Option(help="Of the factors.")] = "fp32",
    hf_config: HFConfig = None,
    base_name: BaseName = None,
    verify: TensorCheck = None,
    replace: Replace = False,
    local: Local = False,
    jobs: Jobs = _DEFAULT_JOBS,
    rate: Rate = None,
    allow_pickle: AllowPickle = False,
    plan: Plan = False,
    no_wait: NoWait = False,
    server: Server = None,
    priority: Urgency = None,
    gpus: Gpus = None,
    memory: Memory = None,
    timeout: Timeout = None,
    after: After = None,
    label: Labels = None,
) -> None:
    """Two checkpoints -> PEFT folder of what lies between them."""
    with reading_arguments():
        spec = AdapterExtractSpec(
            source=as_sent(source),
            tuned=as_sent(tuned),
            target=as_sent(target),
            rank=rank,
            save_others=save_others,
            dtype=dtype,
            hf_config=as_sent(hf_config) if hf_config else None,
            base_name=base_name,
            verify=cast("tuple[Literal['tensors'], ...]", tuple(verify or ())),
            on_exists=_on_exists(replace),
        )
    asks = _asks(priority=priority, gpus=gpus, memory=memory, timeout=timeout, after=after, label=label)
    place = _place(server, local=local, jobs=jobs, rate=rate, allow_pickle=allow_pickle, asks=asks)
    _convert(spec, place, plan=plan, no_wait=no_wait)


@app.command("config")
def config(
    source: Source,
    local: Local = False,
    server: Server = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show where each value comes from; for a config on this machine.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --explain: JSON, not a table.")] = False,
) -> None:
    """Print Megatron's model config for a Hugging Face config, as JSON."""
    with reading_arguments():
        spec = ConfigSpec(source=as_sent(source))
    if explain:
        _explain(spec.source, as_json=as_json)
        return
    _finish(_run(spec, _place(server, local=local)))


@app.command("verify")
def verify(
    source: Source,
    against: Annotated[
        str | None, typer.Argument(metavar="[OTHER]", help="Another checkpoint, of either format; else SRC's manifest.")
    ] = None,
    hf_config: Annotated[
        str | None, typer.Option(metavar="DIR", help="config.json, for a checkpoint without hf/ beside it.")
    ] = None,
    logits: Annotated[
        bool, typer.Option("--logits", help="With OTHER: run both models; their logits decide, tensors may differ.")
    ] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(help="With --logits: their most difference, as a part of their range; else 0.001."),
    ] = None,
    top1: Annotated[
        float | None, typer.Option(help="With --logits: the least part of places with the same first choice; else 1.")
    ] = None,
    local: Local = False,
    jobs: Jobs = _DEFAULT_JOBS,
    rate: Rate = None,
    allow_pickle: AllowPickle = False,
    no_wait: NoWait = False,
    server: Server = None,
) -> None:
    """Check a folder against its manifest, or compare two checkpoints: bit for bit, or by their logits."""
    with reading_arguments():
        spec = VerifySpec(
            source=as_sent(source),
            against=as_sent(against) if against else None,
            hf_config=as_sent(hf_config) if hf_config else None,
            logits=logits,
            logits_tolerance=tolerance,
            least_top1=top1,
        )
    place = _place(server, local=local, jobs=jobs, rate=rate, allow_pickle=allow_pickle)
    _convert(spec, place, plan=False, no_wait=no_wait)


@app.command("jobs")
def list_jobs(
    state: Annotated[str | None, typer.Option(help="queued, running, succeeded, failed or cancelled.")] = None,
    kind: Annotated[str | None, typer.Option(help="config, import, export, merge, adapter or verify.")] = None,
    label: Annotated[str | None, typer.Option(metavar="NAME:VALUE", help="Jobs with this label.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The most to list.")] = 50,
    as_json: AsJson = False,
    server: Server = None,
) -> None:
    """List jobs, newest first."""
    from ..client import Client
    from .tables import print_jobs

    with Client(server or server_url()) as client:
        found = list(client.list(state=state, kind=kind, label=label, limit=limit))
    if as_json:
        _print([job.model_dump(mode="json") for job in found])
    else:
        print_jobs(found)


@app.command("show")
def show(job_id: Annotated[str, typer.Argument(metavar="ID")], as_json: AsJson = False, server: Server = None) -> None:
    """Show one job."""
    from ..client import Client
    from .tables import print_job

    with Client(server or server_url()) as client:
        job = client.get(job_id)
    if as_json:
        _print(job.model_dump(mode="json"))
    else:
        print_job(job)


@app.command("cancel")
def cancel(job_id: Annotated[str, typer.Argument(metavar="ID")], server: Server = None) -> None:
    """End a job that waits or runs; what it wrote is kept for a while, for a retry."""
    from ..client import Client
    from .tables import print_job

    with Client(server or server_url()) as client:
        print_job(client.cancel(job_id))


@app.command("retry")
def retry(job_id: Annotated[str, typer.Argument(metavar="ID")], server: Server = None) -> None:
    """Queue a failed or cancelled job again."""
    from ..client import Client
    from .tables import print_job

    with Client(server or server_url()) as client:
        print_job(client.retry(job_id))


@app.command("families")
def list_families(as_json: AsJson = False) -> None:
    """List the models that can be converted."""
    from .explained import print_families
    from .local import families

    found = families()
    if as_json:
        _print(found)
    else:
        print_families(found)


@app.command("up", context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def up(context: typer.Context) -> None:
    """Run broker, API and workers on this machine. `ferry up --help` lists its options."""
    from .local import worker_command

    command = worker_command("up", *context.args)
    os.execv(command[0], command)  # noqa: S606  # our own command, and no shell


def _adapter(typed: str) -> AdapterUse:
    path, weight = weighted(typed)
    return AdapterUse(path=as_sent(path), weight=weight)


def _on_exists(replace: bool) -> OnExists:
    return "replace" if replace else "error"


def _asks(
    *,
    priority: str | None,
    gpus: int | None,
    memory: str | None,
    timeout: float | None,
    after: list[str] | None,
    label: list[str] | None,
) -> dict[str, Any]:
    """The fields of a JobRequest that were given."""
    given = {
        "priority": priority,
        "gpus": gpus,
        "memory_bytes": _size(memory) if memory else None,
        "timeout_seconds": timeout,
        "depends_on": after or None,
        "labels": dict(map(_label, label)) if label else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"{text!r} is no label; write NAME=VALUE")
    return name, value


def _place(
    server: str | None,
    *,
    local: bool,
    jobs: int = 1,
    rate: str | None = None,
    allow_pickle: bool = False,
    asks: Mapping[str, Any] | None = None,
) -> Place:
    if not local:
        return There(url=server or server_url(), asks=asks or {})
    if asks:
        raise typer.BadParameter(f"--local runs now and here; {', '.join(asks)} would be for a server")
    if server is not None:
        raise typer.BadParameter("--local works without a server; give one of --local and --server")
    limit = _size(rate) if rate else None
    return Here(copy_processes=jobs, io_bytes_per_second=limit, allow_pickle=allow_pickle)


def _explain(source: str, *, as_json: bool) -> None:
    from .explained import print_explained
    from .local import explain

    explained = explain(source)
    if as_json:
        _print(explained)
    else:
        print_explained(explained)


def _convert(spec: JobSpec, place: Place, *, plan: bool, no_wait: bool) -> None:
    if plan:
        found = _plan(spec, place)
        _print(found)
        refuse_without_room(found)
    elif no_wait:
        _submit(spec, place)
    else:
        _finish(_run(spec, place))


def _plan(spec: JobSpec, place: Place) -> dict[str, Any]:
    from ..client import Client
    from .local import plan_local

    match place:
        case Here():
            return plan_local(spec, place)
        case There(url=url):
            with Client(url) as client:
                return client.plan(spec)
        case _:
            assert_never(place)


def _submit(spec: JobSpec, place: Place) -> None:
    from ..client import Client

    match place:
        case Here():
            raise typer.BadParameter("nobody goes on with a job of --local; leave out --no-wait")
        case There(url=url, asks=asks):
            with Client(url) as client, reading_arguments():
                sys.stdout.write(f"{client.submit(spec, **asks).id}\n")
        case _:
            assert_never(place)


def _run(spec: JobSpec, place: Place) -> Result:
    from ..client import Client
    from .local import run_local
    from .progress import showing
    from .remote import run_remote

    match place:
        case Here():
            with showing(spec.kind) as show:
                return run_local(spec, place, show)
        case There(url=url, asks=asks):
            with Client(url) as client, reading_arguments():
                return run_remote(client, spec, asks)
        case _:
            assert_never(place)


def _finish(result: Result) -> None:
    from .tables import summary, verified

    match result:
        case ConfigResult(megatron_config=megatron_config):
            _print(megatron_config)
        case CheckpointResult():
            sys.stdout.write(f"{summary(result)}\n")
        case VerifyResult():
            sys.stdout.write(f"{verified(result)}\n")
        case _:
            assert_never(result)


def _print(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
