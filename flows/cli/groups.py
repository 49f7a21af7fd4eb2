"""The command groups of `clickmill`: full descriptions in help, old names, one-line errors."""

import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from common.config.loading import ConfigError
from common.fault_file import report_fault
from common.files import DataError
from common.full_disk import find_full_disk
from common.logs import configure_logging
from common.masking import mask_passwords
from common.printable import printable_lines
from common.startup import search_garbage_less_often
from common.subprocess_tree import CommandFailed, die_with_parent
from common.threads import limit_threads
from flows.error_logging import EXPECTED_ERRORS
from flows.git_commands import forget_calling_git

# Commands of earlier versions, each with its name of today. They work until the next release.
MOVED = {
    **{
        name: f"stage {name}"
        for name in (
            "collect",
            "ingest",
            "features",
            "compact",
            "train",
            "join",
            "evaluate",
            "compare",
        )
    },
    **{
        name: f"nightly {name}"
        for name in ("backfill", "rollback", "replay", "prune", "health", "alerts")
    },
    "night": "nightly run",
    "models": "nightly list",
    "why": "nightly explain",
}


class Group(TyperGroup):
    """Lists commands with their whole descriptions, however narrow the terminal is."""

    # The parameters have click's types, of which typer has a copy of its own.
    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one entry for each command; click would cut descriptions off."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [
            (name, command.get_short_help_str(limit=1000))
            for name, command in commands
            if command is not None and not command.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class MainGroup(Group):
    """Accepts old command names, and reports expected errors in one line each."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that args name, after replacing an old name by today's."""
        if args[0] in MOVED:
            new_name = MOVED[args[0]]
            typer.echo(
                f"clickmill: `clickmill {args[0]}` is now `clickmill {new_name}`; "
                "the old name works until the next release",
                err=True,
            )
            args = [*new_name.split(), *args[1:]]
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command; an expected error becomes one line, any other keeps its traceback."""
        if "DVC_STAGE" in os.environ:  # started by DVC: a stage must not outlive a killed dvc
            die_with_parent()
        forget_calling_git()
        search_garbage_less_often()
        configure_logging()
        limit_threads()
        try:
            return super().main(*args, **kwargs)
        except Exception as error:
            if not isinstance(error, (CommandFailed, ConfigError, DataError)):
                error = find_full_disk(error) or error
            if not isinstance(error, EXPECTED_ERRORS):
                raise
            message, code = printable_lines(mask_passwords(str(error))), exit_code_of(error)
            report_fault(message, code)
            for line in message.split("\n"):
                typer.echo(f"clickmill: error: {line}", err=True)
            sys.exit(code)


def exit_code_of(error: Exception) -> int:
    """Return EX_DATAERR for a fault of the data, EX_CONFIG for one of params.yaml, else 1."""
    if isinstance(error, DataError):
        return os.EX_DATAERR
    if isinstance(error, ConfigError):
        return os.EX_CONFIG
    return 1


def make_app(
    help_text: str, group: type[Group] = Group, *, no_args_is_help: bool = True
) -> typer.Typer:
    """Create a group of commands, which prints its help when it is called without a command."""
    return typer.Typer(
        cls=group,
        help=help_text,
        no_args_is_help=no_args_is_help,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # the last line of an error is the error, without a box around it
        add_completion=group is MainGroup,
    )
