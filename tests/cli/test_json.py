"""The promise to programs: which keys there are, and of which types."""

from __future__ import annotations

import json
from typing import get_type_hints

from storaged.cli.objects import PoolObject, VolumeObject
from tests.cli.conftest import Ctl

BOTH_WAYS = True

POOL = set(get_type_hints(PoolObject))
VOLUME = set(get_type_hints(VolumeObject))


def test_the_keys_of_a_pool_never_go_away():
    assert {
        "name", "uuid", "type", "state", "active", "persistent", "autostart", "capacity",
        "allocation", "available", "target", "problems",
    } <= POOL  # fmt: skip


def test_the_keys_of_a_volume_never_go_away():
    assert {
        "name", "pool", "key", "path", "type", "format", "capacity", "allocation", "physical",
        "building", "problem",
    } <= VOLUME  # fmt: skip


def test_pools(pool: Ctl):
    [listed] = pool.json("pool", "list")
    assert listed.keys() == POOL
    assert listed["name"] == "t"
    assert listed["active"] is True
    assert type(listed["available"]) is int
    assert listed["target"] == str(pool.images)
    assert listed["problems"] == []
    info = pool.json("pool", "info", "t")
    assert info.keys() == POOL
    assert info["uuid"] == pool.json("pool", "uuid", "t")["uuid"] == listed["uuid"]
    assert pool.json("pool", "name", "t") == {"name": "t"}
    assert pool.json("pool", "dumpxml", "t")["xml"].startswith("<pool type='dir'>")


def test_volumes(pool: Ctl):
    made = pool.json("vol", "create-as", "t", "a", "1M", "--format", "qcow2")
    assert made["action"] == "created"
    assert made["volume"].keys() == VOLUME
    assert made["volume"]["capacity"] == 1 << 20
    assert made["volume"]["format"] == "qcow2"
    assert pool.json("vol", "list", "t") == [made["volume"]]
    assert pool.json("vol", "info", "t/a") == {**made["volume"], "used_by": []}
    path = str(pool.images / "a")
    assert pool.json("vol", "path", "t/a") == {"path": path}
    assert pool.json("vol", "key", "t/a") == {"key": path}
    assert pool.json("vol", "name", path) == {"name": "a"}
    assert pool.json("vol", "pool", path)["name"] == "t"


def test_changes(pool: Ctl, tmp_path):
    content = tmp_path / "content"
    content.write_bytes(b"hello")
    pool.out("vol", "create-as", "t", "a", "1M")
    for words, action in (
        (("vol", "clone", "t", "a", "b"), "created"),
        (("vol", "resize", "t/a", "2M"), "resized"),
        (("vol", "wipe", "t/a"), "wiped"),
        (("vol", "upload", "t/a", str(content)), "uploaded"),
        (("vol", "download", "t/a", str(tmp_path / "back")), "downloaded"),
    ):
        answer = pool.json(*words)
        assert answer["action"] == action
        assert answer["volume"].keys() == VOLUME
    assert pool.json("vol", "upload", "t/a", str(content))["bytes"] == 5
    gone = pool.json("vol", "delete", "t/b")
    assert gone == {
        "action": "deleted",
        "volume": {
            "name": "b",
            "pool": "t",
            "key": str(pool.images / "b"),
            "path": str(pool.images / "b"),
        },
    }
    for words, action in (
        (("pool", "refresh", "t"), "refreshed"),
        (("pool", "autostart", "t"), "autostart on"),
        (("pool", "stop", "t"), "stopped"),
        (("pool", "build", "t"), "built"),
        (("pool", "start", "t"), "started"),
    ):
        answer = pool.json(*words)
        assert answer["action"] == action
        assert answer["pool"].keys() == POOL
    pool.run("pool", "stop", "t")
    assert pool.json("pool", "undefine", "t")["pool"].keys() == {"name", "uuid"}


def test_ensure(ctl: Ctl):
    first = ctl.json("pool", "ensure", "t", "--target", str(ctl.images))
    assert first["changed"] is True
    assert {"defined", "started", "autostart on"} <= set(first["actions"])
    assert first["differences"] == []
    assert first["pool"].keys() == POOL
    second = ctl.json("pool", "ensure", "t", "--target", str(ctl.images))
    assert (second["changed"], second["actions"]) == (False, [])
    other = ctl.json("pool", "ensure", "t", "--target", "/elsewhere")
    assert other["changed"] is False
    assert other["differences"] == [
        {"field": "target", "wanted": "/elsewhere", "found": str(ctl.images)}
    ]
    made = ctl.json("vol", "ensure", "t", "a", "1M")
    assert (made["changed"], made["actions"]) == (True, ["created"])
    assert made["volume"].keys() == VOLUME


def test_errors(pool: Ctl):
    done = pool.run("vol", "info", "t/none", "--json", status=4)
    assert done.stdout == b""
    error = json.loads(done.stderr)["error"]
    assert error["code"] == 50
    assert error["kind"] == "not-found"
    assert error["status"] == 4
    assert error["message"] == (
        "Storage volume not found: no storage vol with matching name 'none'"
    )
    assert isinstance(error["advice"], str)


def test_a_wrong_command_line(ctl: Ctl):
    done = ctl.run("pool", "list", "--nonsense", "--json", status=2)
    error = json.loads(done.stderr)["error"]
    assert error["kind"] == "usage"
    assert "--nonsense" in error["message"]


def test_json_may_stand_in_front(pool: Ctl):
    assert json.loads(pool.out("--json", "pool", "list"))[0]["name"] == "t"
