"""The client half: a blocking connection to a daemon, or to an engine in this process.

`opening.open_link` turns an URI into a `Link`; over a link go the procedures of `storaged.rpc`. But
for the local link and the remote driver nothing here is bound to Linux, and nothing that is slow to
import is loaded before it is used.
"""
