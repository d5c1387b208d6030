"""What mount's words mean, and what to do then.

Source: the messages of util-linux's mount and of nfs-utils' mount.nfs.
"""

from __future__ import annotations

import shlex

from storaged.model import PoolDef

#: A part of a message, and the advice that goes with it; the first that fits counts.
_ADVICE = (
    (("mount point does not exist", "mount point not a directory"),
     "The mount point is missing: storagectl pool build {name}"),
    (("you might need a /sbin/mount.<type> helper",),
     "The kernel needs a helper for this type: nfs-common, glusterfs-client or cifs-utils"
     " on Debian."),
    (("can't find UUID", "can't find LABEL", "can't find PARTUUID", "can't find PARTLABEL"),
     "No device has it: lsblk -f lists what there is."),
    (("special device",),
     "The device is not there: lsblk lists what there is."),
    (("unknown filesystem type", "No such device"),
     "This kernel has no driver for it: modprobe {format}"),
    (("already mounted or mount point busy",),
     "Somebody uses the device or the mount point: findmnt {source}; fuser -vm {target}"),
    (("wrong fs type", "bad superblock"),
     "The device holds another file system than '{format}', an option is unknown, or it is damaged:"
     " blkid {source}; dmesg"),
    (("can't read superblock", "Structure needs cleaning", "needs journal recovery"),
     "The file system is damaged or the device has errors: fsck {source}; dmesg"),
    (("access denied by server",),
     "The server exports it to others only, or not at all: showmount -e {host}"),
    (("requested NFS version or transport protocol is not supported", "Protocol not supported"),
     "The server does not offer this version of NFS, or is not running: rpcinfo -s {host}."
     " <protocol ver='...'/> in the source sets the version."),
    (("Connection timed out", "Connection refused", "No route to host", "Network is unreachable",
      "Failed to resolve server", "Name or service not known"),
     "The server does not answer: ping {host}"),
    (("reason given by server: No such file or directory",),
     "The server has no such export: showmount -e {host}"),
    (("write-protected", "read-only"),
     "The medium cannot be written: add the mount option ro."),
    (("must be superuser", "permission denied", "Operation not permitted"),
     "Mounting needs root's rights."),
)  # fmt: skip


def mount_advice(said: str, definition: PoolDef, source: str) -> str | None:
    """Return what to do about what mount said; None if its words are unknown.

    :param source: what was to be mounted.
    """
    kind = definition.source.format
    for needles, advice in _ADVICE:
        if any(needle in said for needle in needles):
            hosts = definition.source.hosts
            auto = "nfs" if hosts else "auto"  # what mount makes of host:path
            return advice.format(
                name=shlex.quote(definition.name),
                format=auto if kind in (None, "auto") else kind,
                source=shlex.quote(source),
                target=shlex.quote(definition.target or ""),
                host=shlex.quote(hosts[0].name) if hosts else "HOST",
            )
    return None
