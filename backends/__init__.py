"""The pool types that come with storaged: where each one's class is, loaded when it is needed."""

#: ``module:class`` by the value of ``pool@type``.
BUILTIN = {
    "dir": "storaged.backends.dir:Dir",
    "fs": "storaged.backends.fs:Fs",
    "netfs": "storaged.backends.netfs:Netfs",
    "logical": "storaged.backends.logical:Logical",
    "iscsi": "storaged.backends.iscsi:Iscsi",
    "rbd": "storaged.backends.rbd:Rbd",
}

#: Directories in which a pool type notes what it changes on this host beside its pools. An engine
#: that finds anything there at its opening calls `storaged.backend.Backend.recover`.
NOTES = {"iscsi": ("/etc/iscsi/storaged", "/var/lib/iscsi/storaged")}
