"""The arguments that commands share, as typer reads them."""

from typing import Annotated

import typer

from worker.jobs.spec import DType
from worker.jobs.spec_fields import LayerKeys

Source = Annotated[str, typer.Argument(metavar="SRC", help="A path, or root:path as the server names it.")]
Target = Annotated[str, typer.Argument(metavar="DST", help="Where the output will appear.")]
Replace = Annotated[bool, typer.Option("--replace", help="Put the output in the place of what stands at DST.")]
Server = Annotated[str | None, typer.Option("--server", metavar="URL", help="Default: FERRY_URL, or this machine.")]
Local = Annotated[bool, typer.Option("--local", help="Run here, without a server.")]
Jobs = Annotated[
    int,
    typer.Option(
        "--jobs",
        "-j",
        min=1,
        metavar="N",
        help="Copy processes, with --local.",
        envvar="FERRY_COPY_PROCESSES",
        show_envvar=False,
    ),
]
Rate = Annotated[
    str | None,
    typer.Option(
        "--rate",
        metavar="SIZE",
        help="The most to move a second, with --local.",
        envvar="FERRY_IO_BYTES_PER_SECOND",
        show_envvar=False,
    ),
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Read Megatron's older torch format, with --local.",
        envvar="FERRY_ALLOW_PICKLE",
        show_envvar=False,
    ),
]
Plan = Annotated[bool, typer.Option("--plan", help="Print the plan as JSON and write nothing.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Print the job's id and leave.")]
_ASK = "For the server"
Urgency = Annotated[
    str | None, typer.Option("--priority", metavar="low|normal|high", help="Among waiting jobs.", rich_help_panel=_ASK)
]
Gpus = Annotated[
    int | None,
    typer.Option("--gpus", min=0, metavar="N", help="GPUs of one host, leased all or none.", rich_help_panel=_ASK),
]
Memory = Annotated[
    str | None, typer.Option("--memory", metavar="SIZE", help="What its processes may hold.", rich_help_panel=_ASK)
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", help="How long an attempt may take.", rich_help_panel=_ASK),
]
After = Annotated[
    list[str] | None, typer.Option("--after", metavar="ID", help="A job that must succeed first.", rich_help_panel=_ASK)
]
Labels = Annotated[
    list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="To find it again.", rich_help_panel=_ASK)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Dtype = Annotated[DType | None, typer.Option("--dtype", help="Cast the tensors, each rounded once.")]
KeysOfLayers = Annotated[
    LayerKeys,
    typer.Option(
        "--layer-keys", help="One Megatron tensor for all layers, or one a layer: faster for Megatron to load."
    ),
]
Checks = Annotated[
    list[str] | None,
    typer.Option(
        "--verify",
        metavar="tensors|logits",
        help="Before it is published: read every tensor again, or run both models. Repeatable.",
    ),
]
TensorCheck = Annotated[
    list[str] | None,
    typer.Option("--verify", metavar="tensors", help="Before it is published: read every tensor again."),
]
SetupChecks = Annotated[
    list[str] | None,
    typer.Option(
        "--verify",
        metavar="tensors|logits|load",
        help="Of the base, before it is published, as an import's; `load` is --verify-load. Repeatable.",
    ),
]
HFConfig = Annotated[
    str | None,
    typer.Option(
        "--hf-config", metavar="DIR", help="config.json and tokenizer, for a checkpoint without hf/ beside it."
    ),
]
BaseName = Annotated[
    str | None,
    typer.Option("--base-name", metavar="NAME", help="What base_model_name_or_path says; default: the base's path."),
]
ShardBytes = Annotated[
    str | None, typer.Option("--max-shard-bytes", metavar="SIZE", help="The most that one file holds, like 500MB.")
]
PartBytes = Annotated[
    str | None,
    typer.Option("--part-bytes", metavar="SIZE", help="About so much is written, retried and resumed as one part."),
]
