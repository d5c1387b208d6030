"""Hand sockets over as systemd does: ``python handover.py NAMES FD... -- PROGRAM ARGUMENT...``.

The descriptors are moved to 3 and up, and the program takes this process over.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    split = sys.argv.index("--")
    names, fds = sys.argv[1], [int(fd) for fd in sys.argv[2:split]]
    program = sys.argv[split + 1 :]
    # First out of the way of each other, then to their places.
    aside = [os.dup2(fd, 100 + number) for number, fd in enumerate(fds)]
    for number, fd in enumerate(aside):
        os.dup2(fd, 3 + number, inheritable=True)
        os.close(fd)
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.environ["LISTEN_FDS"] = str(len(fds))
    if names != "-":
        os.environ["LISTEN_FDNAMES"] = names
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
