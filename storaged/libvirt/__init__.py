"""Libvirt-python's storage interface: a program that says ``import libvirt`` needs no other change.

::

    from storaged import libvirt

    with libvirt.open("storage:///system") as conn:
        pool = conn.storagePoolLookupByName("images")
        print(pool.info(), [volume.path() for volume in pool.listAllVolumes()])

It talks libvirt's own protocol to whatever daemon serves it, storaged or libvirt, and has an engine
in this process at ``storage:///embed?root=DIR``. Names, signatures, what is returned and what is
raised are those of libvirt-python 9.0.
"""

from __future__ import annotations

from storaged.libvirt.connection import virConnect as virConnect
from storaged.libvirt.constants import *  # noqa: F403
from storaged.libvirt.errorconstants import *  # noqa: F403
from storaged.libvirt.errors import libvirtError as libvirtError
from storaged.libvirt.events import _eventInvokeHandleCallback as _eventInvokeHandleCallback
from storaged.libvirt.events import _eventInvokeTimeoutCallback as _eventInvokeTimeoutCallback
from storaged.libvirt.events import virEventAddHandle as virEventAddHandle
from storaged.libvirt.events import virEventAddTimeout as virEventAddTimeout
from storaged.libvirt.events import virEventInvokeFreeCallback as virEventInvokeFreeCallback
from storaged.libvirt.events import virEventRegisterDefaultImpl as virEventRegisterDefaultImpl
from storaged.libvirt.events import virEventRegisterImpl as virEventRegisterImpl
from storaged.libvirt.events import virEventRemoveHandle as virEventRemoveHandle
from storaged.libvirt.events import virEventRemoveTimeout as virEventRemoveTimeout
from storaged.libvirt.events import virEventRunDefaultImpl as virEventRunDefaultImpl
from storaged.libvirt.events import virEventUpdateHandle as virEventUpdateHandle
from storaged.libvirt.events import virEventUpdateTimeout as virEventUpdateTimeout
from storaged.libvirt.opening import getVersion as getVersion
from storaged.libvirt.opening import open as open
from storaged.libvirt.opening import openAuth as openAuth
from storaged.libvirt.opening import openReadOnly as openReadOnly
from storaged.libvirt.opening import registerErrorHandler as registerErrorHandler
from storaged.libvirt.opening import virGetLastError as virGetLastError
from storaged.libvirt.opening import virGetLastErrorCode as virGetLastErrorCode
from storaged.libvirt.opening import virGetLastErrorDomain as virGetLastErrorDomain
from storaged.libvirt.opening import virGetLastErrorMessage as virGetLastErrorMessage
from storaged.libvirt.opening import virInitialize as virInitialize
from storaged.libvirt.opening import virResetLastError as virResetLastError
from storaged.libvirt.pool import virStoragePool as virStoragePool
from storaged.libvirt.secret import virSecret as virSecret
from storaged.libvirt.stream import virStream as virStream
from storaged.libvirt.volume import virStorageVol as virStorageVol
