"""The program ``storaged``: options in, exit status out.

Status 0 is an orderly end, 1 an error that was said, 2 a wrong option.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
from collections.abc import Sequence
from contextlib import suppress

from storaged.daemon import background, options
from storaged.daemon.program import Program
from storaged.errors import StorageError

_log = logging.getLogger(__name__)

#: How long a thread of pure Python may keep the others, and so the event loop, from running, in
#: seconds: with Python's own 5 ms, one busy thread makes each answer twenty times as late.
_SWITCH = 0.0005


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon until it is told to end; return the exit status.

    Called from the program's entry point it does not return: threads that wait for dead storage
    must not keep the process alive, so that it ends without waiting for them.
    """
    wanted = options.parse(arguments)
    try:
        if wanted.daemon:
            return background.start(wanted)
        os.umask(0o077 if wanted.session else 0o022)
        sys.setswitchinterval(_SWITCH)
        _raise_file_limit()
        _forbid_cores()
        status = Program(wanted, os.environ).run()
    except StorageError as err:
        _complain(err)
        status = 1
    except KeyboardInterrupt:  # before the loop was there to take the signal
        status = 1
    except Exception:
        _log.exception("a bug in storaged ended it; please report it with this traceback")
        status = 1
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _complain(err: StorageError) -> None:
    """Say why there is no daemon; the log may lead elsewhere, where nobody looks at that moment."""
    text = f"storaged: {err.message}\n"
    if err.advice:
        text += f"  {err.advice}\n"
    with suppress(OSError, ValueError):
        sys.stderr.write(text.encode(errors="backslashreplace").decode())


def _forbid_cores() -> None:
    """Have no memory of ours written to a disk by a crash, nor that of any child: secrets pass."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _raise_file_limit() -> None:
    """Allow as many open files as the administrator does: a client is one, and so is a stream."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
