"""A double of polkit that always gives one answer; run as a program by `polkitd`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from jeepney import (  # type: ignore[import-untyped]
    DBusAddress,
    HeaderFields,
    MessageType,
    new_error,
    new_method_call,
    new_method_return,
)
from jeepney.io.blocking import open_dbus_connection  # type: ignore[import-untyped]

from storaged.server import polkit

_OUTCOMES: dict[str, tuple[bool, bool, dict[str, str]]] = {
    "yes": (True, False, {}),
    "no": (False, False, {}),
    "challenge": (False, True, {}),
    "dismissed": (False, True, {"polkit.dismissed": "true"}),
}


def main(answer: str, noted: Path) -> None:
    connection = open_dbus_connection("SYSTEM")
    bus = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
    name = "org.freedesktop.PolicyKit1"
    connection.send_and_get_reply(new_method_call(bus, "RequestName", "su", (name, 0)))
    while True:
        message = connection.receive()
        if message.header.message_type is not MessageType.method_call:
            continue
        member = message.header.fields[HeaderFields.member]
        reply = _reply(member, message, answer)
        if member != "EnumerateActions":
            with noted.open("a") as file:
                file.write(json.dumps([member, message.body]) + "\n")
        if reply is not None:
            connection.send(reply)


def _reply(member: str, message: Any, answer: str) -> Any:
    if member == "EnumerateActions":
        actions: list[tuple[Any, ...]] = [
            (one, "", "", "", "", "", 0, 0, 0, {}) for one in (polkit.MANAGE, polkit.MONITOR)
        ]
        return new_method_return(message, "a(ssssssuuua{ss})", (actions,))
    if member == "CancelCheckAuthorization":
        return new_method_return(message)
    if answer == "silence":
        return None
    if answer == "fault":
        return new_error(message, "org.freedesktop.PolicyKit1.Error.Failed", "s", ("no luck",))
    return new_method_return(message, "(bba{ss})", (_OUTCOMES[answer],))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
