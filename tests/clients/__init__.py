"""Real clients of libvirt, unmodified, on storaged's daemon and on libvirt's own beside it."""
