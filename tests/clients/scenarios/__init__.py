"""What programs that use libvirt's Python binding do, run under the Python that has it.

Each public function is one scenario: it gets a `tests.clients.peer.Client`, checks what must hold
on any daemon, and returns what must be the same on all.
"""
