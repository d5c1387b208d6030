"""The guest harness: runs the tests marked ``kernel`` on a Debian kernel inside QEMU.

`make test-vm` is ``python -m tests.vm``. The guest's root is this machine's own ``/``, read only,
with the packages that this machine lacks, and a copy of the checkout, laid over it: all is
there under its own path, and nothing the guest writes survives but what it puts into /out.
"""
