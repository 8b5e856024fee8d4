"""`ferry config` and `ferry verify`: what writes nothing."""

from dataclasses import dataclass
from typing import Annotated

import typer

from worker.jobs.spec import ConfigSpec, VerifySpec

from ..settings import server_url
from .arguments import Local, NoWait, Server, Source
from .failure import reading_arguments
from .locations import as_sent
from .output import sent
from .places import Here, There
from .running import PickleOptions, carry_out, finish, place_of, print_json, refuse_server, run


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
    if local:
        refuse_server(server)
    if explain:
        _explain(spec.source, server, as_json=as_json)
        return
    finish(run(spec, Here() if local else There(url=server or server_url())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """With what a checkpoint is compared, and how."""

    against: Annotated[
        str | None, typer.Argument(metavar="[OTHER]", help="Another checkpoint, of either format; else SRC's manifest.")
    ] = None
    hf_config: Annotated[
        str | None, typer.Option(metavar="DIR", help="config.json, for a checkpoint without hf/ beside it.")
    ] = None
    logits: Annotated[
        bool, typer.Option("--logits", help="With OTHER: run both models; their logits decide, tensors may differ.")
    ] = False
    tolerance: Annotated[
        float | None,
        typer.Option(help="With --logits: their most difference, as a part of their range; else 0.001."),
    ] = None
    top1: Annotated[
        float | None, typer.Option(help="With --logits: the least part of places with the same first choice; else 1.")
    ] = None


def verify(
    source: Source, how: Comparison, here: PickleOptions, no_wait: NoWait = False, server: Server = None
) -> None:
    """Check a folder against its manifest, or compare two checkpoints: bit for bit, or by their logits."""
    with reading_arguments():
        spec = VerifySpec(
            source=as_sent(source),
            against=sent(how.against),
            hf_config=sent(how.hf_config),
            logits=how.logits,
            logits_tolerance=how.tolerance,
            least_top1=how.top1,
        )
    carry_out(spec, place_of(here, server), no_wait=no_wait)


def _explain(source: str, server: str | None, *, as_json: bool) -> None:
    from .explained import print_explained
    from .local import explain

    if server is not None:
        raise typer.BadParameter("--explain reads a config on this machine; give one of --explain and --server")
    explained = explain(source)
    if as_json:
        print_json(explained)
    else:
        print_explained(explained)
