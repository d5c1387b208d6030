"""What runs in a process of its own, because librbd may abort it: rbd images on a Ceph cluster.

`service.Service` is served by `storaged.isolatescript` under an interpreter that has the bindings
rados and rbd. So these modules import the standard library, these two, and each other.
"""
