"""The programs: each number is answered as libvirt 9.0 answers it, each name stands once."""

from __future__ import annotations

import pytest

from storaged.errors import Unsupported
from storaged.rpc import (
    admin,
    extension,
    images,
    keepalive,
    program,
    remote,
    secret,
    storage,
    unserved,
)
from storaged.rpc.packet import VERSION, Header, Kind
from storaged.rpc.program import Access, AnyProcedure
from storaged.rpc.record import Record, Void


def numbers(text: str) -> set[int]:
    """Return the numbers of a text such as ``1 3-5``."""
    found: set[int] = set()
    for part in text.split():
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


SERVED = numbers("1-3 7 60 66-100 110 125 149 154-155 157 165 208-209 259-260 281-282") | numbers(
    "139-147 287 360-361 368-369 378 380-381 391 403 419"
)
EVENTS = numbers(
    "107 169-173 195 224 241 248 268-270 276 292 311 315 318-333 339 346 348 354 359 362-363 367"
    " 370 373 376-377 379 382-383 385 423 438"
)
NETWORK = numbers("36 38-50 52 152-153 283 291 313-314 341 404-410 432 437")
INTERFACE = numbers("126-134 137-138 156 220-222 284")
NWFILTER = numbers("175-181 286 397-401 431")
NODEDEV = numbers("111-117 123-124 285 297 374-375 428-430 433-436")
HYPERVISOR_NODEDEV = numbers("118-120 301")
SNAPSHOT = numbers("185-193 244 246-247 271-272 274-275")
CHECKPOINT = numbers("411-417")
NO_EVENT = numbers("106 168 317")
NO_DESCRIPTOR = numbers("249")
NO_DESCRIPTORS = numbers("343 443")
#: what libvirt 9.0 has
KNOWN = numbers("1-443")
OTHERS = KNOWN - SERVED - EVENTS - NETWORK - INTERFACE - NWFILTER - NODEDEV - HYPERVISOR_NODEDEV
OTHERS -= SNAPSHOT | CHECKPOINT | NO_EVENT | NO_DESCRIPTOR | NO_DESCRIPTORS
#: calls that a read-only connection is refused before anything else
WRITERS = numbers(
    "8-13 26-35 53-55 58 61-63 103-104 108-109 118-120 135-136 148 160-161 164 166 174"
    " 182 184-185 192-193 196-197 199 201 204-205 207 210-211 213-219 225-226 231-237 239-240 242"
    " 245 249-252 254 256 258 261 264 266-267 277 279 288 290 294-296 300-310 334-338 342-343 345"
    " 347 349-350 352 355-358 364 366 371-372 384 386 389-390 392-396 402 411 417-418 420-421"
    " 424-425 427 439-442"
)


def test_everything_is_covered() -> None:
    assert set(remote.PROCEDURES) == SERVED | {362, 370, 373, 382, 383}
    assert not SERVED & EVENTS
    assert len(OTHERS) == 205


UNSUPPORTED = (
    (OTHERS, 20),
    (HYPERVISOR_NODEDEV, 22),
    (SNAPSHOT, 35),
    (CHECKPOINT, 69),
)


@pytest.mark.parametrize(("group", "domain"), UNSUPPORTED)
def test_unsupported(group: set[int], domain: int) -> None:
    for number in group:
        error = unserved.refusal(number)
        assert isinstance(error, Unsupported)
        assert (error.code, error.domain) == (3, domain), number
        assert error.detail.startswith("vir")
        assert error.detail.isalnum()


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (4, "virConnectGetVersion"),
        (16, "virDomainGetInfo"),
        (35, "virDomainUndefine"),
        (59, "virConnectGetHostname"),
        (105, "virConnectDomainEventRegisterAny"),
        (118, "virNodeDeviceDettach"),
        (148, "virDomainMigratePrepareTunnel"),
        (288, "virNodeSetMemoryParameters"),
        (203, "virConnectGetSysinfo"),
        (212, "virDomainGetState"),
        (258, "virDomainShutdownFlags"),
        (273, "virConnectListAllDomains"),
        (280, "virDomainGetEmulatorPinInfo"),
        (310, "virDomainCreateWithFiles"),
        (316, "virConnectDomainEventRegisterAny"),
        (344, "virConnectGetAllDomainStats"),
        (372, "virDomainSetGuestVcpus"),
        (402, "virDomainSetIOThreadParams"),
        (417, "virDomainCheckpointDelete"),
        (442, "virDomainAbortJobFlags"),
    ],
)
def test_name_in_the_answer(number: int, name: str) -> None:
    error = unserved.refusal(number)
    assert error.message == f"this function is not supported by the connection driver: {name}"


ELSEWHERE = (
    (NETWORK, "network connection not open"),
    (INTERFACE, "interface connection not open"),
    (NWFILTER, "nwfilter connection not open"),
    (NODEDEV, "nodedev connection not open"),
    (NO_EVENT, "domain event not registered"),
    (NO_DESCRIPTOR, "No FD available at slot 0"),
)


@pytest.mark.parametrize(("group", "detail"), ELSEWHERE)
def test_elsewhere(group: set[int], detail: str) -> None:
    for number in group:
        error = unserved.refusal(number)
        assert (error.code, error.domain, error.detail) == (1, 7, detail), number


def test_descriptors() -> None:
    for number in NO_DESCRIPTORS:
        error = unserved.refusal(number)
        assert (error.code, error.domain) == (74, 20)
        assert error.detail == "fd passing is not supported by this connection"


@pytest.mark.parametrize(
    "number", [*sorted(EVENTS), *range(444, 460), 0, -1, -(2**31), 2**31 - 1, 10_000]
)
def test_unknown(number: int) -> None:
    for readonly in (False, True):
        error = unserved.refusal(number, readonly=readonly)
        assert (error.code, error.domain) == (39, 7)
        assert error.message == f"unknown procedure: {number}"
    assert not unserved.needs_writer(number)


def test_readonly() -> None:
    assert {number for number in range(-1, 500) if unserved.needs_writer(number)} == WRITERS
    for number in KNOWN - SERVED:
        plain = unserved.refusal(number)
        error = unserved.refusal(number, readonly=True)
        if number in WRITERS:
            assert error.code == 29
            assert error.detail.startswith("read only access prevents vir")
            assert error.domain == (20 if plain.code in (1, 74) else plain.domain)
        else:
            assert (error.code, error.message) == (plain.code, plain.message)


PROGRAMS: dict[str, dict[int, AnyProcedure]] = {
    "remote": remote.PROCEDURES,
    "admin": admin.PROCEDURES,
    "extension": extension.PROCEDURES,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_procedures(name: str) -> None:
    procedures = PROGRAMS[name]
    number = getattr(program, name.upper())
    assert all(found.program == number for found in procedures.values())
    assert all(key == found.number for key, found in procedures.items())
    names = [found.name for found in procedures.values()]
    assert len(set(names)) == len(names)
    for found in procedures.values():
        assert issubclass(found.args, Record)
        assert issubclass(found.ret, Record)
        assert found.name in repr(found)
        if found.access is Access.EVENT:
            assert found.ret is Void


def test_no_procedure_is_left_out() -> None:
    """Each stands under its own number: none hides another of the same number."""
    parts = (((admin,), admin.PROCEDURES), ((extension, images), extension.PROCEDURES))
    for modules, procedures in parts:
        found = [value for module in modules for value in vars(module).values()]
        declared = [value for value in found if isinstance(value, program.Procedure)]
        assert len(declared) == len(procedures)
        assert set(procedures) == set(range(1, len(procedures) + 1))
    assert len(storage.PROCEDURES) == 47
    assert len(secret.PROCEDURES) == 14
    parted = (*remote.GENERIC, *storage.PROCEDURES, *secret.PROCEDURES)
    assert len(parted) == len(remote.PROCEDURES)


def test_access() -> None:
    by_access = {
        access: {n for n, found in remote.PROCEDURES.items() if found.access is access}
        for access in Access
    }
    assert by_access[Access.ANYBODY] == numbers("66-70")
    assert by_access[Access.EVENT] == {362, 370, 373, 382, 383}
    assert by_access[Access.WRITER] == numbers("75-83 90 93-94 125 142 144-146 165 208-209 259-260")
    streams = {n for n, found in remote.PROCEDURES.items() if found.stream}
    assert streams == {208, 209}


def test_programs_are_told_apart() -> None:
    numbers = (program.REMOTE, program.QEMU, program.LXC, program.KEEPALIVE, program.ADMIN)
    assert len({*numbers, program.EXTENSION}) == 6
    assert (program.REMOTE, program.ADMIN) == (536903814, 0x06900690)
    assert program.KEEPALIVE.to_bytes(4, "big") == b"keep"
    assert program.EXTENSION.to_bytes(4, "big") == b"stor"


def ping(**changes: int) -> Header:
    header = Header(program.KEEPALIVE, VERSION, 1, Kind.MESSAGE, 0, 0)
    return header._replace(**changes)


def test_pings_are_answered() -> None:
    assert keepalive.answer(ping()) == keepalive.PONG
    assert keepalive.answer(ping(serial=5)) == keepalive.PONG
    for other in (
        ping(procedure=2),
        ping(version=2),
        ping(kind=Kind.CALL),
        ping(program=program.REMOTE),
    ):
        assert keepalive.answer(other) is None
