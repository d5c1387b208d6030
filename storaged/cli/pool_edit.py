"""``pool edit``: change a definition in an editor, without ever losing what was typed."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from storaged.cli.documents import read
from storaged.cli.invocation import Invocation
from storaged.cli.lazy import command
from storaged.cli.lookup import find_pool
from storaged.cli.objects import pool_changed
from storaged.cli.parameters import pool_argument
from storaged.errors import OperationFailed, StorageError, system_errors

if TYPE_CHECKING:
    from storaged import PoolDef


@command("edit", examples=("storagectl pool edit default", "EDITOR=nano storagectl pool edit nas"))
@pool_argument
@click.pass_obj
def edit(call: Invocation, pool: str) -> None:
    """Edit the definition of a pool.

    Opens the XML in $VISUAL, $EDITOR or vi. A running pool goes on as it is until its next start.
    If the new text cannot be used you are asked whether to edit it again; a text that is not used
    in the end stays in a file, which is named.
    """
    with call.look() as storage:
        found = find_pool(storage, pool)
        name, before = found.name, found.xml(inactive=True)
        definition = found.definition(inactive=True)
    draft = _write_draft(name, before)
    while True:
        _run_editor(draft)
        try:
            after = read(str(draft))
            if after == before:
                call.emit({"action": "unchanged"}, f"pool {name} not changed")
            else:
                _define(call, name, definition, after)
        except StorageError as err:
            if _again(err):
                continue
            err.advice = f"The edited text is kept in {draft}. {err.advice or ''}".rstrip()
            raise
        draft.unlink()
        return


def _define(call: Invocation, name: str, before: PoolDef, after: str) -> None:
    with call.change() as storage:
        if find_pool(storage, name).definition(inactive=True) != before:
            raise OperationFailed(f"pool '{name}' was changed by somebody else meanwhile")
        pool = storage.define_pool(after)
        call.emit(pool_changed("defined", pool), f"pool {pool.name} changed")


def _write_draft(name: str, text: str) -> Path:
    with system_errors("cannot write a file for the editor"):
        number, path = tempfile.mkstemp(prefix=f"storagectl-{name}-", suffix=".xml")
        with os.fdopen(number, "w") as file:
            file.write(text)
    return Path(path)


def _run_editor(draft: Path) -> None:
    """Run the user's editor on *draft*.

    It is the user's own program on the user's terminal, so it gets neither the built environment
    nor the closed input that tools get.

    :raise OperationFailed: it cannot be run, or says that it failed; the draft stays.
    """
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    argv = [*shlex.split(editor), str(draft)]
    # Ctrl-C is the editor's. A handler, unlike SIG_IGN, is not inherited by the program.
    handler = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        status = subprocess.run(argv, check=False).returncode
    except OSError as err:
        raise OperationFailed(
            f"cannot run the editor '{editor}': {err.strerror}",
            advice=f"Set EDITOR to one that is installed. The text is kept in {draft}.",
        ) from err
    finally:
        signal.signal(signal.SIGINT, handler)
    if status != 0:
        raise OperationFailed(
            f"the editor '{editor}' ended with status {status}",
            advice=f"Nothing was changed. The text is kept in {draft}.",
        )


def _again(err: StorageError) -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    click.echo(f"error: {err.message}", err=True)
    if err.advice:
        click.echo(f"hint: {err.advice}", err=True)
    try:
        return click.confirm("Edit it again?", default=True, err=True)
    except click.Abort:
        return False
