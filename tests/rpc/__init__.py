"""Tests of the wire protocol: bytes to messages and back, without a socket."""
