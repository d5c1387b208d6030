"""libvirt's storage driver in pure Python."""
