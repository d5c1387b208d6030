"""Completion of words in bash, zsh and fish.

The shell runs storagectl at each press of TAB. So the answer must be quick, must never be an
error, and must come also if a pool's storage hangs: then there is none.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from storaged.cli.invocation import Invocation
from storaged.cli.lazy import command

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from storaged import Storage

#: After this long a shell gets no words at all, in seconds.
PATIENCE = 2.0

_VARIABLE = "_STORAGECTL_COMPLETE"


@command(
    "completion",
    examples=(
        "storagectl completion bash > /etc/bash_completion.d/storagectl",
        "storagectl completion zsh > /usr/local/share/zsh/site-functions/_storagectl",
        "storagectl completion fish > ~/.config/fish/completions/storagectl.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_obj
def completion(call: Invocation, shell: str) -> None:
    """Print the script that completes words in a shell.

    It completes commands, options, and the names of pools, volumes and secrets.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for '{shell}'")
    script = kind(click.Command("storagectl"), {}, "storagectl", _VARIABLE)
    # Not script.source(): that one runs bash to ask for its version.
    text = script.source_template % script.source_vars()
    call.emit({"shell": shell, "script": text}, text)


def answer(program: click.Command, instruction: str) -> int:
    """Print the words that fit, as the completion scripts ask for them; never fail.

    :param instruction: such as ``bash_complete``.
    """
    from click.shell_completion import shell_complete

    late = threading.Timer(PATIENCE, os._exit, (0,))
    late.daemon = True
    late.start()
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    try:
        shell_complete(program, {}, "storagectl", _VARIABLE, instruction)
        sys.stdout.flush()
    except Exception:
        return 0
    finally:
        late.cancel()
    return 0


def pools(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """Return the names of pools that begin with *incomplete*."""
    return _offer(ctx, lambda storage: _matching(incomplete, _pool_names(storage)))


def volumes(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """Return what can stand for VOL: a name if the pool is given, else ``POOL/NAME``.

    Beside a slash at the beginning files are offered instead.
    """
    from click.shell_completion import CompletionItem

    if incomplete.startswith("/"):
        return [CompletionItem(incomplete, type="file")]
    pool = ctx.params.get("pool")
    if pool:
        return _offer(ctx, lambda storage: _matching(incomplete, storage.pool(pool).names()))
    name, slash, start = incomplete.partition("/")
    if not slash:
        return _offer(
            ctx,
            lambda storage: [f"{found}/" for found in _matching(incomplete, _pool_names(storage))],
        )
    return _offer(
        ctx,
        lambda storage: [
            f"{name}/{found}" for found in _matching(start, storage.pool(name).names())
        ],
    )


def jobs(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """Return the ids of the jobs under way that begin with *incomplete*."""
    return _offer(
        ctx, lambda storage: _matching(incomplete, [str(job.id) for job in storage.jobs()])
    )


def secrets(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """Return what can stand for SECRET: ``KIND/ID``, and for one without an ID its UUID."""
    return _offer(ctx, lambda storage: _matching(incomplete, _secret_words(storage)), "secret")


def clone_words(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """Return what can be the next word of ``vol clone [POOL] VOL NEWNAME``."""
    given = tuple(ctx.params.get("words") or ())
    if ctx.params.get("pool"):
        return [] if given else volumes(ctx, incomplete)
    if not given:
        return pools(ctx, incomplete) + volumes(ctx, incomplete)
    if len(given) == 1 and "/" not in given[0]:
        return _offer(ctx, lambda storage: _matching(incomplete, storage.pool(given[0]).names()))
    return []


def _offer(
    ctx: click.Context, gather: Callable[[Storage], Iterable[str]], driver: str = "storage"
) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    call = Invocation.of(ctx.find_root().params)
    try:
        with call.look(driver) as storage:
            return [CompletionItem(word) for word in gather(storage) if word.isprintable()]
    except Exception:
        return []  # an error has no place on a command line that is being typed


def _pool_names(storage: Storage) -> list[str]:
    return [pool.name for pool in storage.pools()]


def _secret_words(storage: Storage) -> list[str]:
    return [
        str(each.uuid) if each.usage_id is None else f"{each.usage}/{each.usage_id}"
        for each in storage.secrets.definitions()
    ]


def _matching(start: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(start)]
