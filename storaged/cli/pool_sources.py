"""What a pool could be made of: find-sources, find-sources-as, capabilities."""

from __future__ import annotations

import click

from storaged.cli.documents import read, source_document
from storaged.cli.invocation import Invocation
from storaged.cli.lazy import command
from storaged.cli.parameters import POOL_TYPES, complete_words

type_argument = click.argument("kind", metavar="TYPE", shell_complete=complete_words(*POOL_TYPES))


@command(
    "find-sources",
    examples=("storagectl pool find-sources logical", "storagectl pool find-sources netfs nas.xml"),
)
@type_argument
@click.argument("file", metavar="[FILE|-]", required=False, type=click.Path(allow_dash=True))
@click.pass_obj
def find_sources(call: Invocation, kind: str, file: str | None) -> None:
    """Find sources for a pool as an XML document asks.

    FILE holds a <source> that says where to look; some types need none. Prints <sources>.
    """
    _find(call, kind, read(file) if file is not None else None)


@command(
    "find-sources-as",
    examples=(
        "storagectl pool find-sources-as netfs nas.example.org",
        "storagectl pool find-sources-as iscsi-direct san --initiator iqn.2024-01.org.example:me",
    ),
)
@type_argument
@click.argument("host", required=False)
@click.argument("port", required=False)
@click.option("--initiator", metavar="IQN", help="IQN of the initiator.")
@click.pass_obj
def find_sources_as(
    call: Invocation, kind: str, host: str | None, port: str | None, initiator: str | None
) -> None:
    """Find sources for a pool on a server.

    Prints <sources>, one <source> for each that could be used in a definition.
    """
    _find(call, kind, source_document(host, port, initiator))


@command("capabilities", examples=("storagectl pool capabilities",))
@click.pass_obj
def capabilities(call: Invocation) -> None:
    """Print the pool types and formats as XML.

    Each type that libvirt knows is listed with whether it is supported here.
    """
    with call.look() as storage:
        text = storage.capabilities().rstrip("\n")
    call.emit({"xml": text}, text)


def _find(call: Invocation, kind: str, spec: str | None) -> None:
    with call.look() as storage:
        text = storage.find_sources(kind, spec).rstrip("\n")
    call.emit({"xml": text}, text)
