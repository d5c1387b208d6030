"""Commands that are imported when they run: a group is a table of names, and starts at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from storaged.cli.invocation import Invocation

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.shell_completion import CompletionItem


@dataclass(frozen=True, slots=True)
class Entry:
    """One command of a group.

    :param place: ``module:attribute`` of the `click.Command`.
    :param summary: its line in the list of commands; the first line of its own help says the same.
    """

    place: str
    summary: str

    def load(self) -> click.Command:
        """Import the command."""
        module, _, attribute = self.place.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command


class Command(click.Command):
    """A command that takes ``--json`` and ``--verbose`` also behind its name, and has examples.

    Its function gets an `Invocation` through ``click.pass_obj``.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.examples = tuple(examples)
        self.params += [
            click.Option(["--json", "as_json"], is_flag=True, help="Print JSON, for programs."),
            click.Option(["--verbose"], is_flag=True, help="Show tracebacks and the log."),
        ]

    def invoke(self, ctx: click.Context) -> Any:
        """Gather the settings of all levels, then run the function."""
        settings = ctx.find_root().params
        as_json, verbose = ctx.params.pop("as_json"), ctx.params.pop("verbose")
        ctx.obj = Invocation.of(settings, json=as_json, verbose=verbose)
        if ctx.obj.verbose:
            import logging

            logging.basicConfig(level=logging.DEBUG)
        return super().invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print the examples below the options."""
        write_examples(formatter, self.examples)


class LazyGroup(click.Group):
    """A group whose commands stand in a table.

    :param table: the commands by name, in the order of the help.
    :param aliases: further names, not listed, for names of the table.
    :param examples: command lines for the help.
    :param notes: titled blocks of lines for the help.
    """

    def __init__(
        self,
        *args: Any,
        table: Mapping[str, Entry],
        aliases: Mapping[str, str] | None = None,
        examples: Sequence[str] = (),
        notes: Mapping[str, Sequence[str]] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self.table = table
        self.aliases = aliases or {}
        self.examples = tuple(examples)
        self.notes = notes or {}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words of the group; without any, print the help as an error."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command; also by its alias, and by virsh's one word (``pool-list``)."""
        entry = self.table.get(self.aliases.get(cmd_name, cmd_name))
        if entry is not None:
            return entry.load()
        group, _, rest = cmd_name.partition("-")
        if rest and group in self.table:
            inner = self.table[group].load()
            if isinstance(inner, LazyGroup):
                return inner.get_command(ctx, rest)
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table: no module is imported for it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in self.table.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print the examples and notes below the commands."""
        write_examples(formatter, self.examples)
        for heading, lines in self.notes.items():
            with formatter.section(heading):
                formatter.write("".join(f"  {line}\n" for line in lines))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer the names of the table, without an import, and the options."""
        from click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=entry.summary)
            for name, entry in self.table.items()
            if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)


def command(
    name: str, *, examples: Sequence[str], **settings: Any
) -> Callable[[Callable[..., Any]], Command]:
    """Make a `Command` of a function (a decorator)."""
    return click.command(name, cls=Command, examples=examples, **settings)


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """Print a section of command lines as they are, without wrapping."""
    if examples:
        with formatter.section("Examples"):
            formatter.write("".join(f"  {line}\n" for line in examples))
