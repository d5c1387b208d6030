"""A real Ceph cluster of one node, in user space, and somebody who works on it beside us."""
