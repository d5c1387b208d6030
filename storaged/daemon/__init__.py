"""The program `storaged`: the engine behind libvirt's sockets, as a service of the host."""
