"""Errors: libvirt's code and text on each, what storaged adds apart from it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from storaged import errors
from storaged.errors import (
    CommandFailed,
    Domain,
    InternalError,
    OperationFailed,
    ResourceBusy,
    StorageError,
    SystemFailure,
    VolumeExists,
    XMLError,
    system_errors,
    where,
)


def all_classes(root: type[StorageError] = StorageError) -> Iterator[type[StorageError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from all_classes(child)


def an_error(kind: type[StorageError]) -> StorageError:
    if issubclass(kind, CommandFailed):
        return kind(("lvs", "-a"), 5, "no such group\n")
    return kind("the detail", advice="Do this.")


#: Code and prefix as libvirt's clients know them.
PREFIXES = {
    "StorageError": (1, "%s"),
    "InternalError": (1, "internal error: %s"),
    "CommandFailed": (1, "internal error: %s"),
    "CommandTimeout": (1, "internal error: %s"),
    "MissingProgram": (1, "internal error: %s"),
    "MissingBackend": (1, "internal error: %s"),
    "PoolBusy": (1, "internal error: %s"),
    "Unsupported": (3, "this function is not supported by the connection driver: %s"),
    "InvalidArgument": (8, "invalid argument: %s"),
    "BadArgument": (8, "%s"),
    "InvalidSecret": (65, "Invalid secret: %s"),
    "OperationFailed": (9, "operation failed: %s"),
    "PoolExists": (9, "operation failed: %s"),
    "NoSpace": (9, "operation failed: %s"),
    "TargetChanged": (9, "operation failed: %s"),
    "XMLError": (27, "XML error: %s"),
    "XMLSyntaxError": (35, "%s"),
    "XMLSchemaError": (92, "XML document failed to validate against schema: %s"),
    "SystemFailure": (38, "%s"),
    "NoSuchPool": (49, "Storage pool not found: %s"),
    "NoSuchVolume": (50, "Storage volume not found: %s"),
    "OperationInvalid": (55, "Requested operation is not valid: %s"),
    "NameTaken": (55, "Requested operation is not valid: %s"),
    "VolumeBusy": (55, "Requested operation is not valid: %s"),
    "NoSuchSecret": (66, "Secret not found: %s"),
    "ConfigUnsupported": (67, "unsupported configuration: %s"),
    "Timeout": (68, "Timed out during operation: %s"),
    "ArgumentUnsupported": (74, "argument unsupported: %s"),
    "ProbeFailed": (75, "Storage pool probe failed: %s"),
    "PoolBuilt": (76, "Storage pool already built: %s"),
    "Cancelled": (78, "operation aborted: %s"),
    "Overflow": (82, "numerical overflow: %s"),
    "OperationUnsupported": (84, "Operation not supported: %s"),
    "ResourceBusy": (87, "resource busy: %s"),
    "AccessDenied": (88, "access denied: %s"),
    "VolumeExists": (90, "storage volume %s exists already"),
}


def test_every_class_has_its_code_and_prefix() -> None:
    assert {kind.__name__: (kind.code, kind.prefix) for kind in all_classes()} == PREFIXES


@pytest.mark.parametrize("kind", list(all_classes()))
def test_the_message_is_libvirts_text_alone(kind: type[StorageError]) -> None:
    error = an_error(kind)
    assert str(error) == error.message == kind.prefix.replace("%s", error.detail)
    assert error.message.strip()
    assert "Do this." not in error.message
    assert error.domain in (Domain.STORAGE, Domain.NONE)


@pytest.mark.parametrize(
    "kind", [kind for kind in all_classes() if not issubclass(kind, CommandFailed)]
)
def test_the_advice_stands_apart(kind: type[StorageError]) -> None:
    assert an_error(kind).advice == "Do this."
    assert kind("x").advice is None


def test_a_percent_sign_in_the_detail_stays() -> None:
    assert str(VolumeExists("'100%s'")) == "storage volume '100%s' exists already"


def test_system_failure_ends_with_the_kernels_words() -> None:
    error = SystemFailure("cannot open file '/x'", errno.ENOENT)
    assert str(error) == "cannot open file '/x': No such file or directory"
    assert error.errno == errno.ENOENT
    assert str(SystemFailure("no number")) == "no number"


def test_command_failed_keeps_what_was_run() -> None:
    error = CommandFailed(("lvs", "-a"), 5, " no such group\n")
    expected = "internal error: Child process (lvs -a) unexpected exit status 5: no such group"
    assert str(error) == expected
    assert (error.argv, error.status, error.domain) == (("lvs", "-a"), 5, Domain.NONE)
    assert "fatal signal 9" in str(CommandFailed(("x",), -9, ""))


def test_xml_errors_say_where() -> None:
    assert XMLError("bad", element="target/path", line=4).advice == "See <target/path> in line 4."
    assert where(None, 3) == "See line 3."
    assert where("a", None) == "See <a>."
    assert where(None, None) is None


def test_resource_busy_names_the_process() -> None:
    assert ResourceBusy("x", pid=7).pid == 7


def test_kinds_can_be_caught_together() -> None:
    assert issubclass(errors.PoolBusy, InternalError)
    assert issubclass(errors.PoolExists, OperationFailed)
    assert issubclass(errors.NoSpace, OperationFailed)
    assert issubclass(errors.VolumeBusy, errors.OperationInvalid)


def test_system_errors_translates_and_chains() -> None:
    with pytest.raises(SystemFailure) as caught, system_errors("cannot stat '/x'", advice="A."):
        Path("/nowhere-at-all").stat()
    assert str(caught.value) == "cannot stat '/x': No such file or directory"
    assert caught.value.advice == "A."
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_system_errors_without_a_number() -> None:
    with pytest.raises(SystemFailure) as caught, system_errors("doing"):
        raise OSError("strange")
    assert caught.value.errno == errno.EIO


def test_system_errors_lets_others_through() -> None:
    with pytest.raises(ValueError, match="x"), system_errors("doing"):
        raise ValueError("x")
