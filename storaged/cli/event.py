"""What happens to pools, as it happens."""

from __future__ import annotations

import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import click

from storaged.cli import render
from storaged.cli.invocation import Invocation
from storaged.cli.lazy import command
from storaged.cli.outcome import ExitCode
from storaged.cli.parameters import complete_pool
from storaged.errors import OperationFailed

if TYPE_CHECKING:
    from storaged import Event, Storage

#: How often it is seen whether the daemon is still there, in seconds.
_PULSE = 0.5


@command(
    "event",
    examples=(
        "storagectl event --loop",
        "storagectl event --pool default --timeout 60",
        "storagectl event --loop --json | jq --unbuffered .pool.name",
    ),
)
@click.option("--loop", is_flag=True, help="Go on after the first event.")
@click.option("--pool", metavar="POOL", shell_complete=complete_pool, help="Of this pool only.")
@click.option(
    "--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Stop after this long."
)
@click.option("--timestamp", is_flag=True, help="Print when each one came.")
@click.pass_obj
def event(
    call: Invocation, loop: bool, pool: str | None, timeout: float | None, timestamp: bool
) -> int:
    """Wait for events of pools and print them.

    A pool is defined, undefined, started, stopped, created (its storage was made), deleted (and
    removed) or refreshed. Only a daemon tells events. Without --loop it ends after the first one,
    and with status 12 if none comes in time.
    """
    came = 0
    heard: SimpleQueue[Event] = SimpleQueue()
    deadline = None if timeout is None else time.monotonic() + timeout
    with call.connect_daemon("event") as storage:
        stop = storage.subscribe(heard.put)
        try:
            while (found := _next(storage, heard, deadline)) is not None:
                if pool is not None and pool not in (found.pool.name, str(found.pool.uuid)):
                    continue
                came += 1
                _print(call, found, timestamp)
                if not loop:
                    break
        finally:
            stop()
    return ExitCode.OK if came or loop else ExitCode.TIMEOUT


def _next(storage: Storage, heard: SimpleQueue[Event], deadline: float | None) -> Event | None:
    """Return the next event, None if none comes in time.

    :raise OperationFailed: the daemon has gone.
    """
    while True:
        left = _PULSE if deadline is None else min(_PULSE, deadline - time.monotonic())
        try:
            return heard.get(timeout=max(left, 0))
        except Empty:
            pass
        if storage.engine.closed:
            raise OperationFailed("the daemon has ended")
        if deadline is not None and time.monotonic() >= deadline:
            return None


def _print(call: Invocation, found: Event, timestamp: bool) -> None:
    word = "refreshed" if found.lifecycle is None else found.lifecycle.name.lower()
    now = time.time()
    if call.json:
        import json

        told: dict[str, object] = {
            "event": word,
            "pool": {"name": found.pool.name, "uuid": str(found.pool.uuid)},
            "time": round(now, 3),
        }
        print(json.dumps(told), flush=True)
        return
    when = time.strftime("%Y-%m-%d %H:%M:%S%z ", time.localtime(now)) if timestamp else ""
    print(f"{when}pool {render.clean(found.pool.name)} {word}", flush=True)
