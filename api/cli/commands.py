"""The commands of `ferry`. What is heavy is imported where it is used, so that help comes at once."""

import os

import typer

from . import adapters, checking, conversions, job_commands, merging, setting_up
from .option_groups import grouped

_COMMANDS = (
    ("import", conversions.import_),
    ("export", conversions.export),
    ("merge", merging.merge),
    ("setup", setting_up.setup),
    ("config", checking.config),
    ("verify", checking.verify),
    ("jobs", job_commands.list_jobs),
    ("show", job_commands.show),
    ("cancel", job_commands.cancel),
    ("retry", job_commands.retry),
    ("families", job_commands.list_families),
)
_ADAPTER_COMMANDS = (
    ("export", adapters.export_adapter),
    ("import", adapters.import_adapter),
    ("extract", adapters.extract_adapter),
)


def up(context: typer.Context) -> None:
    """Run broker, API and workers on this machine. `ferry up --help` lists its options."""
    from .local import worker_command

    command = worker_command("up", *context.args)
    os.execv(command[0], command)  # noqa: S606  # our own command, and no shell


def _app() -> typer.Typer:
    app = typer.Typer(
        name="ferry",
        help="Moves model checkpoints between Hugging Face and Megatron-Core.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name, command in _COMMANDS:
        app.command(name)(grouped(command))
    app.command(
        "up", context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    )(up)
    app.add_typer(_adapter_commands(), name="adapter")
    return app


def _adapter_commands() -> typer.Typer:
    app = typer.Typer(
        help="Adapters between PEFT's format and Megatron's, and out of two checkpoints.", no_args_is_help=True
    )
    for name, command in _ADAPTER_COMMANDS:
        app.command(name)(grouped(command))
    return app


app = _app()
