"""Ansible's modules virt_pool and virt_volume, run as Ansible runs them on a host."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.daemons import SYSTEM_PYTHON, Daemons, Served
from tests.clients.differences import compare

#: Where `packaging/setup.sh` puts them.
PLACE = Path(pwd.getpwuid(os.getuid()).pw_dir) / ".cache/storaged"

POOL = "<pool type='dir'><name>ansible</name><target><path>$DIR/ansible</path></target></pool>"


def volume(name: str, format: str = "raw", more: str = "") -> str:
    return (
        f"<volume><name>{name}</name><allocation>0</allocation><capacity unit='M'>4</capacity>"
        f"<target><format type='{format}'/>{more}</target></volume>"
    )


MODES = "<permissions><mode>0644</mode><label>virt_image_t</label></permissions>"

#: Module and arguments, in the order of a playbook.
TASKS: list[tuple[str, dict[str, Any]]] = [
    ("virt_pool", {"command": "list_pools"}),
    ("virt_pool", {"command": "define", "name": "ansible", "xml": POOL}),
    ("virt_pool", {"state": "present", "name": "ansible", "xml": POOL}),
    ("virt_pool", {"state": "active", "name": "ansible"}),
    ("virt_pool", {"command": "build", "name": "ansible"}),
    ("virt_pool", {"state": "active", "name": "ansible"}),
    ("virt_pool", {"state": "active", "name": "ansible"}),
    ("virt_pool", {"autostart": True, "name": "ansible"}),
    ("virt_pool", {"autostart": True, "name": "ansible"}),
    ("virt_pool", {"autostart": False, "name": "ansible"}),
    ("virt_pool", {"command": "status", "name": "ansible"}),
    ("virt_pool", {"command": "get_xml", "name": "ansible"}),
    ("virt_pool", {"command": "get_xml", "name": "nobody"}),
    ("virt_volume", {"command": "list_volumes", "pool": "ansible"}),
    ("virt_volume", {"state": "present", "pool": "ansible", "xml": volume("one", more=MODES)}),
    ("virt_volume", {"state": "present", "pool": "ansible", "xml": volume("one", more=MODES)}),
    ("virt_volume", {"command": "create", "pool": "ansible", "xml": volume("two", "qcow2")}),
    (
        "virt_volume",
        {"state": "present", "pool": "ansible", "xml": volume("three"), "clone_source": "one"},
    ),
    (
        "virt_volume",
        {"state": "present", "pool": "ansible", "xml": volume("four"), "clone_source": "nobody"},
    ),
    ("virt_volume", {"command": "list_volumes", "pool": "ansible"}),
    ("virt_volume", {"command": "get_xml", "pool": "ansible", "name": "two"}),
    ("virt_volume", {"command": "get_xml", "pool": "ansible", "name": "nobody"}),
    ("virt_volume", {"command": "wipe", "pool": "ansible", "name": "three"}),
    ("virt_volume", {"state": "absent", "pool": "ansible", "name": "three", "wipe": True}),
    ("virt_volume", {"state": "absent", "pool": "ansible", "name": "three"}),
    ("virt_volume", {"command": "delete", "pool": "ansible", "name": "two"}),
    ("virt_pool", {"command": "refresh", "name": "ansible"}),
    ("virt_pool", {"command": "info"}),
    ("virt_pool", {"command": "facts"}),
    ("virt_pool", {"command": "list_pools", "state": "active"}),
    ("virt_pool", {"command": "delete", "name": "ansible"}),
    ("virt_pool", {"state": "inactive", "name": "ansible"}),
    ("virt_volume", {"state": "absent", "pool": "ansible", "name": "one"}),
    ("virt_pool", {"state": "active", "name": "ansible"}),
    ("virt_volume", {"state": "absent", "pool": "ansible", "name": "one"}),
    ("virt_pool", {"state": "deleted", "name": "ansible"}),
    ("virt_pool", {"state": "absent", "name": "ansible"}),
]


class Ansible:
    """The modules, unpacked below *place*."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def begin(self, served: Served, module: str, arguments: dict[str, Any]) -> Any:
        """Start one task on a host that is this machine."""
        given = {name: served.inward(value) for name, value in arguments.items()}
        task = {"ANSIBLE_MODULE_ARGS": {**given, "uri": served.uri}}
        process = subprocess.Popen(
            [
                SYSTEM_PYTHON,
                "-m",
                f"ansible_collections.community.libvirt.plugins.modules.{module}",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(self._place)},
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(task))
        process.stdin.close()
        process.stdin = None
        return process


@pytest.fixture(scope="module")
def ansible() -> Ansible:
    for place in sorted(PLACE.glob("ansible-*")):
        return Ansible(place)
    pytest.skip("Ansible's modules for libvirt are not there (make setup fetches them)")


def result(served: Served, process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate(timeout=60)
    assert output, f"on {served.name}: {errors}"
    answer = json.loads(output)
    answer.pop("invocation", None)
    answer.pop("exception", None)
    return {name: _in_order(value) for name, value in served.outward(answer).items()}


def _in_order(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return sorted(value, key=lambda item: str(item.get("name")))
    return value


@pytest.mark.slow
def test_playbook(daemons: Daemons, ansible: Ansible) -> None:
    changes = 0
    for number, (module, arguments) in enumerate(TASKS):
        running = [ansible.begin(served, module, arguments) for served in daemons]
        theirs, ours = (
            result(served, process) for served, process in zip(daemons, running, strict=True)
        )
        words = " ".join(str(value) for value in arguments.values() if "<" not in str(value))
        compare(f"{number:02} {module} {words}", theirs, ours)
        changes += ours.get("changed") is True
    assert changes > 10
