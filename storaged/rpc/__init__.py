"""Libvirt's wire protocol, without any input or output: bytes to messages and back.

`packet` cuts a stream of bytes into packets, `record` and `xdr` say what is in them, the programs
(`remote`, `admin`, `keepalive`, `extension`) declare their procedures with the records they take
and give. `streams` makes and tells apart what an upload or a download is made of, `remoteerror`
turns errors into records and back, `unserved` refuses the rest of libvirt's calls. Everything
serves both directions: a server and a client.
"""
