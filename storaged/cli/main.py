"""storagectl's entry: parse, run, and turn every end into an exit status.

All that can go wrong below arrives at the one ``try`` in `main`.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Sequence

import click

from storaged.cli.lazy import Entry, LazyGroup
from storaged.cli.outcome import MEANINGS, ExitCode, classify, complain
from storaged.errors import StorageError, SystemFailure

#: Set by the completion scripts to what the shell wants of us.
COMPLETE = "_STORAGECTL_COMPLETE"

#: Objects made between two searches for garbage.
_GARBAGE = 100_000

_COMMANDS = {
    "pool": Entry("storaged.cli.groups:pool", "Work on pools: the places volumes are kept in."),
    "vol": Entry("storaged.cli.groups:vol", "Work on volumes: disk images and block devices."),
    "job": Entry("storaged.cli.groups:job", "Work on jobs: long work under way in a daemon."),
    "secret": Entry(
        "storaged.cli.groups:secret",
        "Work on secrets: passwords and passphrases.",
    ),
    "event": Entry("storaged.cli.event:event", "Wait for events of pools and print them."),
    "completion": Entry(
        "storaged.cli.completion:completion", "Print the script that completes words in a shell."
    ),
}


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from storaged.version import VERSION

        click.echo(f"storagectl {VERSION}")
        ctx.exit()


@click.group(
    "storagectl",
    cls=LazyGroup,
    table=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    examples=(
        "storagectl pool ensure default",
        "storagectl vol create-as default web1.qcow2 20G --format qcow2",
        "storagectl --json vol list default",
        "storagectl --root /tmp/try pool ensure t --type dir --target /tmp/try/images",
        "storagectl -c qemu+ssh://root@host/system pool list",
    ),
    notes={"Exit status": [f"{int(code):>3}  {meaning}" for code, meaning in MEANINGS]},
)
@click.option(
    "--root",
    metavar="DIR",
    envvar="STORAGED_ROOT",
    help="Keep configuration and state below DIR. Targets of pools stay where they are.",
)
@click.option(
    "-c",
    "--connect",
    metavar="URI",
    envvar="STORAGED_URI",
    help="Use the engine of this URI, such as storage:///system or qemu+ssh://root@host/system.",
)
@click.option("--embedded", is_flag=True, help="Work in this process even if a daemon runs.")
@click.option("--session", is_flag=True, help="Use the pools of this user, not of the host.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.option("--verbose", is_flag=True, help="Show tracebacks and the log.")
@click.option(
    "--lock-timeout",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait at most this long for another engine to let go.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
@click.pass_context
def storagectl(
    ctx: click.Context,
    /,
    root: str | None,
    session: bool,
    connect: str | None,
    embedded: bool,
    **_: object,
) -> None:
    """Work on libvirt's storage pools and volumes, through a daemon or without one.

    A pool is a place that holds volumes, such as a directory or a volume group; a volume is a disk
    of a virtual machine. storagectl works through storaged's daemon, or libvirt's, if one runs
    here, and else by itself on the definitions of libvirt, with the same commands and answers. So
    what it makes can be used by every libvirt tool. Commands that only look take no lock and never
    wait. Answers go to standard output, errors, hints and progress to standard error; --json makes
    JSON of both.
    """
    _settle(ctx)
    given = [f"--{name}" for name in ("connect", "root", "session") if ctx.params[name]]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} exclude each other")
    if ctx.params["connect"] and embedded:
        raise click.UsageError("--connect and --embedded exclude each other")


def _settle(ctx: click.Context) -> None:
    """Have what stands on the command line go before what the environment says."""
    from click.core import ParameterSource

    from_environment = [
        name
        for name in ("connect", "root")
        if ctx.get_parameter_source(name) is ParameterSource.ENVIRONMENT
    ]
    typed = any(
        ctx.params[name] and name not in from_environment
        for name in ("connect", "root", "session", "embedded")
    )
    for name in from_environment:
        if typed and not (name == "root" and ctx.params["embedded"]):
            ctx.params[name] = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run storagectl and return its exit status.

    :param arguments: the words behind the program's name; those of the process if None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # A command ends soon: to look for garbage while it loads costs a tenth of its time.
    gc.set_threshold(_GARBAGE)
    if COMPLETE in os.environ:
        from storaged.cli.completion import answer

        return answer(storagectl, os.environ[COMPLETE])
    as_json, verbose = "--json" in words, "--verbose" in words
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except click.UsageError as err:
        return _misused(err, as_json)
    except (click.Abort, KeyboardInterrupt):
        complain(ExitCode.INTERRUPTED, "interrupted", as_json=as_json)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        return _silenced()
    except StorageError as err:
        return _failed(err, as_json, verbose)
    except OSError as err:
        if verbose:
            _print_traceback()
        complain(ExitCode.STORAGE, str(err), as_json=as_json)
        return ExitCode.STORAGE
    except Exception as err:
        return _failed_unexpectedly(err, as_json, verbose)


def _run(words: list[str]) -> int:
    # A name that is not UTF-8 leaves as the bytes it came as.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="surrogateescape")
    # Not storagectl.main(): that one makes 1 of the status when the reader goes away.
    try:
        with storagectl.make_context("storagectl", words) as context:
            result = storagectl.invoke(context)
    except click.exceptions.Exit as end:  # --help and --version
        return end.exit_code
    return result if isinstance(result, int) else ExitCode.OK


def _misused(err: click.UsageError, as_json: bool) -> int:
    advice = None
    if err.ctx is not None:
        advice = f"See {err.ctx.command_path} --help"
    complain(ExitCode.USAGE, err.format_message(), advice, as_json=as_json)
    return ExitCode.USAGE


def _failed(err: StorageError, as_json: bool, verbose: bool) -> int:
    if isinstance(err, SystemFailure) and err.errno == errno.EPIPE:
        return _silenced()  # a download into a pipe
    if verbose:
        _print_traceback()
    code = classify(err)
    complain(code, err.message, err.advice, as_json=as_json, number=err.code)
    return code


def _silenced() -> int:
    """End without a word: the reader went away, and the flush at exit must not complain either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ExitCode.PIPE


def _failed_unexpectedly(err: Exception, as_json: bool, verbose: bool) -> int:
    if verbose:
        _print_traceback()
    trace = "the traceback above" if verbose else "what --verbose prints"
    advice = f"This is a bug in storaged: please report it to its issue tracker, with {trace}."
    complain(
        ExitCode.INTERNAL,
        f"internal error: {type(err).__name__}: {err}",
        advice,
        as_json=as_json,
        number=1,
    )
    return ExitCode.INTERNAL


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()


if __name__ == "__main__":
    sys.exit(main())
