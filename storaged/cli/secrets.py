"""Secrets: list, info, define, define-as, set-value, dumpxml, undefine.

A value never stands on a command line, where every user of the host could read it, and is never
printed.
"""

from __future__ import annotations

import sys
from uuid import UUID, uuid4

import click

from storaged.cli import render
from storaged.cli.documents import read
from storaged.cli.invocation import Invocation
from storaged.cli.lazy import command
from storaged.cli.lookup import find_secret
from storaged.cli.objects import SecretObject, secret_object
from storaged.cli.parameters import SECRET_KINDS, file_argument, secret_argument, validate_option
from storaged.cli.secret import decoded, read_secret
from storaged.errors import NoSuchSecret, OperationFailed

#: The driver that these commands need of a daemon of libvirt's.
_DRIVER = "secret"


@command(
    "list",
    examples=(
        "storagectl secret list",
        "storagectl secret list --private --uuid",
        "storagectl secret list --json | jq -r '.[] | select(.usage == \"iscsi\") | .usage_id'",
    ),
)
@click.option("--ephemeral", is_flag=True, help="Only secrets that are never written to a disk.")
@click.option("--no-ephemeral", is_flag=True, help="Only secrets that stay.")
@click.option("--private", is_flag=True, help="Only secrets whose value is told to nobody.")
@click.option("--no-private", is_flag=True, help="Only secrets whose value can be asked for.")
@click.option("--uuid", "uuids", is_flag=True, help="Print the UUIDs only.")
@click.pass_obj
def list_secrets(
    call: Invocation,
    ephemeral: bool,
    no_ephemeral: bool,
    private: bool,
    no_private: bool,
    uuids: bool,
) -> None:
    """List the secrets."""
    with call.look(_DRIVER) as storage:
        found = storage.secrets.definitions(
            ephemeral=None if ephemeral == no_ephemeral else ephemeral,
            private=None if private == no_private else private,
        )
        objects = [secret_object(each) for each in found]
    if uuids:
        call.emit(objects, lambda: "\n".join(each["uuid"] for each in objects))
    else:
        call.emit(objects, lambda: _table(objects))


@command("info", examples=("storagectl secret info iscsi/target1",))
@secret_argument
@click.pass_obj
def info(call: Invocation, secret: str) -> None:
    """Show what a secret is for; not its value."""
    with call.look(_DRIVER) as storage:
        shown = secret_object(find_secret(storage, secret).definition())
    call.emit(shown, lambda: render.fields(_lines(shown)))


@command(
    "define",
    examples=("storagectl secret define luks.xml", "cat luks.xml | storagectl secret define -"),
)
@file_argument
@validate_option
@click.pass_obj
def define(call: Invocation, file: str, validate: bool) -> None:
    """Define a secret from XML.

    It has no value until 'secret set-value'. One with this UUID that is there already takes the
    new definition and keeps its value.
    """
    _define(call, read(file), validate=validate)


@command(
    "define-as",
    examples=(
        "storagectl secret define-as volume /srv/vms/web1.qcow2 --private",
        "storagectl secret define-as iscsi target1 --description array1",
        "storagectl secret define-as ceph client.libvirt",
    ),
)
@click.argument("kind", metavar="KIND", type=click.Choice(SECRET_KINDS))
@click.argument("usage_id", metavar="ID")
@click.option("--uuid", type=click.UUID, help="UUID of the secret; a new one if it is not given.")
@click.option("--ephemeral", is_flag=True, help="Never write it to a disk.")
@click.option("--private", is_flag=True, help="Tell its value to nobody who asks for it.")
@click.option("--description", help="What people should know of it.")
@click.pass_obj
def define_as(
    call: Invocation,
    kind: str,
    usage_id: str,
    uuid: UUID | None,
    ephemeral: bool,
    private: bool,
    description: str | None,
) -> None:
    """Define a secret from options.

    KIND is what it is for: volume, ceph, iscsi, tls or vtpm. ID is which one: the path of the
    volume, or the name that definitions of pools give as the usage.
    """
    from storaged.secrets.document import format_secret
    from storaged.secrets.values import SecretDef, SecretKind

    wanted = SecretDef(uuid or uuid4(), SecretKind(kind), usage_id, ephemeral, private, description)
    _define(call, format_secret(wanted))


@command(
    "set-value",
    examples=(
        "storagectl secret set-value volume//srv/vms/web1.qcow2",
        "storagectl secret set-value iscsi/target1 --file /root/chap",
        "ceph auth print-key client.x | storagectl secret set-value ceph/x --base64 --file -",
    ),
)
@secret_argument
@click.option(
    "--file",
    metavar="FILE|-",
    type=click.Path(allow_dash=True),
    help="File with the value; a newline at its end does not count.",
)
@click.option("--base64", is_flag=True, help="What is given is the value in base64.")
@click.pass_obj
def set_value(call: Invocation, secret: str, file: str | None, base64: bool) -> None:
    """Set the value of a secret.

    Without --file it is asked for on the terminal. Whatever had the secret's value before keeps
    it: a volume is not encrypted anew.
    """
    value = read_secret(file, base64=base64) if file is not None else _prompt(base64=base64)
    with call.change(_DRIVER) as storage:
        found = find_secret(storage, secret)
        if value is not None:
            found.set_value(value)
        shown = secret_object(found.definition())
    call.emit({"action": "value set", "secret": shown}, f"value of secret {found.uuid} set")


@command("dumpxml", examples=("storagectl secret dumpxml iscsi/target1 > target1.xml",))
@secret_argument
@click.pass_obj
def dumpxml(call: Invocation, secret: str) -> None:
    """Print a secret as XML; its value is not in it."""
    with call.look(_DRIVER) as storage:
        text = find_secret(storage, secret).xml().rstrip("\n")
    call.emit({"xml": text}, text)


@command("undefine", examples=("storagectl secret undefine iscsi/target1",))
@secret_argument
@click.pass_obj
def undefine(call: Invocation, secret: str) -> None:
    """Forget a secret and its value.

    Without its value an encrypted volume cannot be read any more, and nothing brings it back.
    """
    with call.change(_DRIVER) as storage:
        found = find_secret(storage, secret)
        shown = secret_object(found.definition())
        found.undefine()
    call.emit({"action": "undefined", "secret": shown}, f"secret {found.uuid} undefined")


def _define(call: Invocation, text: str, *, validate: bool = False) -> None:
    with call.change(_DRIVER) as storage:
        found = storage.secrets.define(text, validate=validate)
        shown = secret_object(found.definition())
    if shown["ephemeral"]:
        _require_kept(call, found.uuid)
    call.emit({"action": "defined", "secret": shown}, f"secret {found.uuid} defined")


def _require_kept(call: Invocation, uuid: UUID) -> None:
    """Raise unless a secret that is nowhere on a disk has outlived the engine of this process.

    :raise OperationFailed: no daemon keeps it.
    """
    try:
        with call.look(_DRIVER) as storage:
            storage.secrets.lookup(uuid)
    except NoSuchSecret:
        raise OperationFailed(
            "no daemon runs that could keep an ephemeral secret",
            advice="Start one with systemctl start storaged.socket, or leave out --ephemeral.",
        ) from None


def _prompt(*, base64: bool) -> bytes:
    """Ask for a value, twice.

    :raise click.UsageError: nobody can be asked.
    :raise InvalidArgument: it is no base64, and should be.
    """
    if not sys.stdin.isatty():
        raise click.UsageError("no terminal to ask on: give --file FILE, or --file - for a pipe")
    word: str = click.prompt("Value", hide_input=True, confirmation_prompt=True, err=True)
    value = word.encode(errors="surrogateescape")
    return decoded(value) if base64 else value


def _table(objects: list[SecretObject]) -> str:
    rows = [
        (
            each["uuid"],
            each["usage"],
            each["usage_id"] or "-",
            render.yes_no(each["private"]),
            render.yes_no(each["ephemeral"]),
        )
        for each in objects
    ]
    return render.table(("UUID", "Usage", "ID", "Private", "Ephemeral"), rows)


def _lines(shown: SecretObject) -> list[tuple[str, str]]:
    lines = [("UUID", shown["uuid"]), ("Usage", shown["usage"])]
    if shown["usage_id"] is not None:
        lines.append(("ID", shown["usage_id"]))
    lines += [
        ("Private", render.yes_no(shown["private"])),
        ("Ephemeral", render.yes_no(shown["ephemeral"])),
    ]
    if shown["description"] is not None:
        lines.append(("Description", shown["description"]))
    return lines
