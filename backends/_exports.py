"""What an NFS or a Gluster server offers, asked of the servers' own tools.

Source: libvirt's behaviour for the discovery of netfs sources.
"""

from __future__ import annotations

import re
from typing import Any, Final

from storaged import tool
from storaged.errors import MissingProgram, OperationFailed, StorageError, XMLError
from storaged.job import Job
from storaged.model import PoolSource, SourceHost
from storaged.xmlread import read

#: How long a server may take to answer, in seconds; showmount is deaf to all but SIGKILL then.
_TIMEOUT: Final = 10.0
_EXPORT: Final = re.compile(r"(/|/.*\S) +\S+")


def find_exports(host: SourceHost, job: Job[Any]) -> tuple[PoolSource, ...]:
    """Return the exports of an NFS server, and the volumes of a Gluster server.

    :raise Cancelled: *job* was cancelled.
    :raise OperationFailed: neither of the two answers; the advice says what showmount said.
    """
    failure: StorageError | None = None
    found: list[PoolSource] = []
    try:
        argv = ["showmount", "--no-headers", "--exports", host.name]
        found += parse_exports(tool.run(argv, timeout=_TIMEOUT, job=job).text, host)
    except StorageError as err:
        failure = err
    job.checkpoint()
    found += _gluster_volumes(host, job)
    job.checkpoint()
    if failure is not None and not found:
        raise OperationFailed(
            f"no storage pools were found on host '{host.name}'",
            advice=_why(failure),
        ) from failure
    return tuple(found)


def parse_exports(text: str, host: SourceHost) -> list[PoolSource]:
    """Return a source for each line of showmount; lines of another shape are left out."""
    paths = (match[1] for line in text.split("\n") if (match := _EXPORT.fullmatch(line.rstrip())))
    return [
        PoolSource(hosts=(host,), dir=path.rstrip("/") or "/", format="nfs")
        for path in paths
        if path.isprintable()
    ]


def parse_volumes(text: str, host: SourceHost) -> list[PoolSource]:
    """Return a source for each volume of gluster's XML.

    :raise XMLError: it is none.
    """
    answer = read(text, "cliOutput", "gluster")
    names = (node.content() for node in answer.all("volInfo/volumes/volume/name"))
    return [PoolSource(hosts=(host,), dir=name, format="glusterfs") for name in names if name]


def _gluster_volumes(host: SourceHost, job: Job[Any]) -> list[PoolSource]:
    """As libvirt without a word if there is no such tool, or no such server."""
    argv = ["gluster", "--xml", "--log-file=/dev/null", "volume", "info", "all"]
    try:
        done = tool.run([*argv, f"--remote-host={host.name}"], timeout=_TIMEOUT, job=job)
        return parse_volumes(done.text, host)
    except (StorageError, XMLError):
        return []


def _why(failure: StorageError) -> str:
    if isinstance(failure, MissingProgram):
        return f"{failure.detail}. {failure.advice or ''}".strip()
    return f"showmount: {getattr(failure, 'stderr', '') or failure.detail}"
