from __future__ import annotations

import errno
import json

import pytest

from storaged import errors
from storaged.cli.outcome import MEANINGS, ExitCode, classify, complain, warn
from storaged.errors import StorageError, SystemFailure
from storaged.rpc import errors as connection_errors


def every_class(root: type[StorageError]) -> list[type[StorageError]]:
    found = [root]
    for child in root.__subclasses__():
        found += every_class(child)
    return [kind for kind in found if kind.__module__ == errors.__name__]


def make(kind: type[StorageError]) -> StorageError:
    if issubclass(kind, errors.CommandFailed):
        return kind(("mkfs",), 1, "no")
    return kind("x")


@pytest.mark.parametrize("kind", every_class(StorageError), ids=lambda kind: kind.__name__)
def test_every_class_has_a_status_that_is_not_success_or_usage(kind):
    status = classify(make(kind))
    assert status not in (ExitCode.OK, ExitCode.USAGE, ExitCode.INTERNAL, ExitCode.PIPE)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (connection_errors.OperationDenied("x"), 7),
        (connection_errors.AuthFailed("x"), 7),
        (connection_errors.RPCError("x"), 1),
        (connection_errors.NoConnection("x"), 1),
        (errors.NoSuchPool("x"), 4),
        (errors.NoSuchVolume("x"), 4),
        (errors.VolumeExists("'x'"), 5),
        (errors.NameTaken("x"), 5),
        (errors.PoolExists("x"), 5),
        (errors.PoolBusy("x"), 6),
        (errors.NoSpace("x"), 10),
        (errors.VolumeBusy("x"), 6),
        (errors.ResourceBusy("x"), 6),
        (errors.AccessDenied("x"), 7),
        (errors.XMLSchemaError("x"), 8),
        (errors.InvalidArgument("x"), 8),
        (errors.Unsupported("x"), 9),
        (errors.OperationUnsupported("x"), 9),
        (errors.OperationInvalid("x"), 11),
        (errors.Timeout("x"), 12),
        (errors.InternalError("x"), 1),
        (errors.InternalError("storage volume name 'it's' already in use."), 5),
        (errors.Cancelled("x"), 130),
        (SystemFailure("x", errno.ENOSPC), 10),
        (SystemFailure("x", errno.EIO), 10),
        (SystemFailure("x"), 10),
        (SystemFailure("x", errno.ENOENT), 4),
        (SystemFailure("x", errno.EACCES), 7),
        (SystemFailure("x", errno.EBUSY), 6),
    ],
)
def test_statuses_are_what_the_documents_promise(error: StorageError, status: int):
    assert classify(error) == status


def test_every_status_has_a_meaning():
    assert [code for code, _ in MEANINGS] == list(ExitCode)


def test_an_error_and_its_hint(capsys):
    complain(ExitCode.NOT_FOUND, "no pool 'x'", "storagectl pool list")
    assert capsys.readouterr() == ("", "error: no pool 'x'\nhint: storagectl pool list\n")


def test_an_error_as_json(capsys):
    complain(ExitCode.NOT_FOUND, "no", None, as_json=True, number=49)
    assert json.loads(capsys.readouterr().err) == {
        "error": {"code": 49, "kind": "not-found", "status": 4, "message": "no", "advice": None}
    }


def test_a_warning(capsys):
    warn("odd")
    warn("odd", as_json=True)
    assert capsys.readouterr().err == 'warning: odd\n{"warning": "odd"}\n'
