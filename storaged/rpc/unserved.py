"""The answers to calls of the REMOTE program that a storage daemon does not serve.

libvirt's daemons know all procedures and refuse those of drivers they do not have. Clients depend
on how: "not supported" sends them to an older call, or makes them leave out a line.

- Calls about virtual machines and the host are not supported by the driver.
- Calls about networks, interfaces, filters and node devices would be handed on to daemons of their
  own; a storage daemon finds the connection to these not open.
- Numbers that libvirt 9.0 does not have, and those of events, are unknown procedures. Clients look
  at the first two words of this text.

Source: the answers of libvirt 9.0's daemons, number by number.
"""

from __future__ import annotations

from typing import Final

from storaged.errors import ArgumentUnsupported, Domain, InternalError, StorageError, Unsupported
from storaged.rpc.errors import OperationDenied, RPCError

#: The C functions behind the calls, without their "vir". Where there is a number, it is that of the
#: next call. "*" marks what is forbidden on a read-only connection.
_FUNCTIONS: Final = """
4 ConnectGetVersion ConnectGetMaxVcpus NodeGetInfo
8 DomainAttachDevice* DomainCreate* DomainCreateXML* DomainDefineXML* DomainDestroy*
DomainDetachDevice* DomainGetXMLDesc DomainGetAutostart DomainGetInfo DomainGetMaxMemory
DomainGetMaxVcpus DomainGetOSType DomainGetVcpus ConnectListDefinedDomains DomainLookupByID
DomainLookupByName DomainLookupByUUID ConnectNumOfDefinedDomains DomainPinVcpu* DomainReboot*
DomainResume* DomainSetAutostart* DomainSetMaxMemory* DomainSetMemory* DomainSetVcpus*
DomainShutdown* DomainSuspend* DomainUndefine* ConnectListDefinedNetworks ConnectListDomains
ConnectListNetworks NetworkCreate* NetworkCreateXML* NetworkDefineXML* NetworkDestroy*
NetworkGetXMLDesc NetworkGetAutostart NetworkGetBridgeName NetworkLookupByName NetworkLookupByUUID
NetworkSetAutostart* NetworkUndefine* ConnectNumOfDefinedNetworks ConnectNumOfDomains
ConnectNumOfNetworks DomainCoreDump* DomainRestore* DomainSave* DomainGetSchedulerType
DomainGetSchedulerParameters DomainSetSchedulerParameters* ConnectGetHostname
61 DomainMigratePrepare* DomainMigratePerform* DomainMigrateFinish* DomainBlockStats
DomainInterfaceStats
101 NodeGetCellsFreeMemory NodeGetFreeMemory DomainBlockPeek* DomainMemoryPeek*
ConnectDomainEventRegisterAny ConnectDomainEventDeregisterAny
108 DomainMigratePrepare2* DomainMigrateFinish2*
111 NodeNumOfDevices NodeListDevices NodeDeviceLookupByName NodeDeviceGetXMLDesc
NodeDeviceGetParent NodeDeviceNumOfCaps NodeDeviceListCaps NodeDeviceDettach* NodeDeviceReAttach*
NodeDeviceReset* DomainGetSecurityLabel NodeGetSecurityModel NodeDeviceCreateXML*
NodeDeviceDestroy*
126 ConnectNumOfInterfaces ConnectListInterfaces InterfaceLookupByName InterfaceLookupByMACString
InterfaceGetXMLDesc InterfaceDefineXML* InterfaceUndefine* InterfaceCreate* InterfaceDestroy*
ConnectDomainXMLFromNative* ConnectDomainXMLToNative* ConnectNumOfDefinedInterfaces
ConnectListDefinedInterfaces
148 DomainMigratePrepareTunnel*
150 DomainIsActive DomainIsPersistent NetworkIsActive NetworkIsPersistent
156 InterfaceIsActive
158 ConnectCompareCPU DomainMemoryStats DomainAttachDeviceFlags* DomainDetachDeviceFlags*
ConnectBaselineCPU DomainGetJobInfo DomainAbortJob*
166 DomainMigrateSetMaxDowntime* ConnectDomainEventRegisterAny ConnectDomainEventDeregisterAny
174 DomainUpdateDeviceFlags* NWFilterLookupByName NWFilterLookupByUUID NWFilterGetXMLDesc
ConnectNumOfNWFilters ConnectListNWFilters NWFilterDefineXML* NWFilterUndefine* DomainManagedSave*
DomainHasManagedSaveImage DomainManagedSaveRemove* DomainSnapshotCreateXML*
DomainSnapshotGetXMLDesc DomainSnapshotNum DomainSnapshotListNames DomainSnapshotLookupByName
DomainHasCurrentSnapshot DomainSnapshotCurrent DomainRevertToSnapshot* DomainSnapshotDelete*
DomainGetBlockInfo
196 DomainCreateWithFlags* DomainSetMemoryParameters* DomainGetMemoryParameters
DomainSetVcpusFlags* DomainGetVcpusFlags DomainOpenConsole* DomainIsUpdated ConnectGetSysinfo
DomainSetMemoryFlags* DomainSetBlkioParameters* DomainGetBlkioParameters DomainMigrateSetMaxSpeed*
210 DomainInjectNMI* DomainScreenshot* DomainGetState DomainMigrateBegin3* DomainMigratePrepare3*
DomainMigratePrepareTunnel3* DomainMigratePerform3* DomainMigrateFinish3* DomainMigrateConfirm3*
DomainSetSchedulerParametersFlags* InterfaceChangeBegin* InterfaceChangeCommit*
InterfaceChangeRollback* DomainGetSchedulerParametersFlags
225 DomainPinVcpuFlags* DomainSendKey* NodeGetCPUStats NodeGetMemoryStats DomainGetControlInfo
DomainGetVcpuPinInfo DomainUndefineFlags* DomainSaveFlags* DomainRestoreFlags* DomainDestroyFlags*
DomainSaveImageGetXMLDesc* DomainSaveImageDefineXML* DomainBlockJobAbort* DomainGetBlockJobInfo
DomainBlockJobSetSpeed* DomainBlockPull*
242 DomainMigrateGetMaxSpeed* DomainBlockStatsFlags DomainSnapshotGetParent DomainReset*
DomainSnapshotNumChildren DomainSnapshotListChildrenNames
249 DomainOpenGraphics* NodeSuspendForDuration* DomainBlockResize* DomainSetBlockIoTune*
DomainGetBlockIoTune DomainSetNumaParameters* DomainGetNumaParameters
DomainSetInterfaceParameters* DomainGetInterfaceParameters DomainShutdownFlags*
261 DomainPMSuspendForDuration* DomainGetCPUStats DomainGetDiskErrors DomainSetMetadata*
DomainGetMetadata DomainBlockRebase* DomainPMWakeup*
271 DomainSnapshotIsCurrent DomainSnapshotHasMetadata ConnectListAllDomains DomainListAllSnapshots
DomainSnapshotListAllChildren
277 DomainGetHostname* DomainGetSecurityLabelList DomainPinEmulator* DomainGetEmulatorPinInfo
283 ConnectListAllNetworks ConnectListAllInterfaces ConnectListAllNodeDevices
ConnectListAllNWFilters
288 NodeSetMemoryParameters* NodeGetMemoryParameters DomainBlockCommit* NetworkUpdate*
293 NodeGetCPUMap DomainFSTrim* DomainSendProcessSignal* DomainOpenChannel*
NodeDeviceLookupSCSIHostByWWN DomainGetJobStats DomainMigrateGetCompressionCache
DomainMigrateSetCompressionCache* NodeDeviceDetachFlags* DomainMigrateBegin3Params*
DomainMigratePrepare3Params* DomainMigratePrepareTunnel3Params* DomainMigratePerform3Params*
DomainMigrateFinish3Params* DomainMigrateConfirm3Params* DomainSetMemoryStatsPeriod*
DomainCreateXMLWithFiles* DomainCreateWithFiles*
312 ConnectGetCPUModelNames ConnectNetworkEventRegisterAny ConnectNetworkEventDeregisterAny
316 ConnectDomainEventRegisterAny ConnectDomainEventDeregisterAny
334 DomainCoreDumpWithFormat* DomainFSFreeze* DomainFSThaw* DomainGetTime* DomainSetTime*
340 NodeGetFreePages NetworkGetDHCPLeases ConnectGetDomainCapabilities* DomainOpenGraphicsFD*
ConnectGetAllDomainStats DomainBlockCopy*
347 NodeAllocPages*
349 DomainGetFSInfo* DomainDefineXMLFlags* DomainGetIOThreadInfo DomainPinIOThread*
DomainInterfaceAddresses
355 DomainAddIOThread* DomainDelIOThread* DomainSetUserPassword* DomainRename*
364 DomainMigrateStartPostCopy* DomainGetPerfEvents DomainSetPerfEvents*
371 DomainGetGuestVcpus* DomainSetGuestVcpus*
374 ConnectNodeDeviceEventRegisterAny ConnectNodeDeviceEventDeregisterAny
384 DomainSetVcpu*
386 DomainSetBlockThreshold* DomainMigrateGetMaxDowntime DomainManagedSaveGetXMLDesc
DomainManagedSaveDefineXML* DomainSetLifecycleAction*
392 DomainDetachDeviceAlias* ConnectCompareHypervisorCPU* ConnectBaselineHypervisorCPU*
NodeGetSEVInfo* DomainGetLaunchSecurityInfo* NWFilterBindingLookupByPortDev
NWFilterBindingGetXMLDesc NWFilterBindingCreateXML* NWFilterBindingDelete*
ConnectListAllNWFilterBindings DomainSetIOThreadParams*
404 NetworkListAllPorts NetworkPortLookupByUUID NetworkPortCreateXML* NetworkPortGetParameters
NetworkPortSetParameters* NetworkPortGetXMLDesc NetworkPortDelete* DomainCheckpointCreateXML*
DomainCheckpointGetXMLDesc DomainListAllCheckpoints DomainCheckpointListAllChildren
DomainCheckpointLookupByName DomainCheckpointGetParent DomainCheckpointDelete* DomainGetGuestInfo*
420 DomainAgentSetResponseTimeout* DomainBackupBegin* DomainBackupGetXMLDesc
424 DomainAuthorizedSSHKeysGet* DomainAuthorizedSSHKeysSet* DomainGetMessages
DomainStartDirtyRateCalc* NodeDeviceDefineXML* NodeDeviceUndefine* NodeDeviceCreate*
NWFilterDefineXMLFlags* NetworkDefineXMLFlags* NodeDeviceGetAutostart* NodeDeviceSetAutostart*
NodeDeviceIsPersistent NodeDeviceIsActive NetworkCreateXMLFlags*
439 DomainSetLaunchSecurityState* DomainSaveParams* DomainRestoreParams* DomainAbortJobFlags*
DomainFDAssociate
"""

#: The connections that are not open, by a word in the name of a call that needs one.
_ELSEWHERE: Final = (
    ("NWFilter", "nwfilter"),
    ("Network", "network"),
    ("Interface", "interface"),
    ("NodeDevice", "nodedev"),
    ("NodeNumOfDevices", "nodedev"),
    ("NodeListDevices", "nodedev"),
)

#: Calls about node devices that are the hypervisor's.
_HYPERVISOR: Final = (
    "NodeDeviceDettach",
    "NodeDeviceReAttach",
    "NodeDeviceReset",
    "NodeDeviceDetachFlags",
)

#: The parts of libvirt that report a call as not supported, by a word in its name.
_DOMAINS: Final = (
    ("Snapshot", Domain.DOMAIN_SNAPSHOT),
    ("Checkpoint", Domain.DOMAIN_CHECKPOINT),
    ("NodeDevice", Domain.NODEDEV),
)


def refusal(number: int, *, readonly: bool = False) -> StorageError:
    """Return the answer to a call that is not served.

    :param number: of a procedure of the REMOTE program that `remote.PROCEDURES` lacks or that is an
        event; any other number is answered too.
    :param readonly: whether it came through a read-only connection.
    """
    name = _CALLS.get(number)
    if name is None:
        return RPCError(f"unknown procedure: {number}")
    connection = _connection(name)
    if connection is not None:
        return InternalError(f"{connection} connection not open", domain=Domain.RPC)
    if readonly and needs_writer(number):
        denied = f"read only access prevents vir{name}"
        return OperationDenied(denied, domain=_domain(name))
    return _unsupported(name)


def needs_writer(number: int) -> bool:
    """Say whether a call that is not served would be forbidden on a read-only connection.

    This comes before all else that is wrong with it, but not before a connection that is not open.
    """
    return number in _WRITERS and _connection(_CALLS[number]) is None


def _connection(name: str) -> str | None:
    """Return which connection a call would be handed on to, None if it would not."""
    if not name.startswith("Domain") and name not in _HYPERVISOR:
        for word, connection in _ELSEWHERE:
            if word in name:
                return connection
    return None


def _domain(name: str) -> Domain:
    for word, domain in _DOMAINS:
        if word in name:
            return domain
    return Domain.DOMAIN


def _unsupported(name: str) -> StorageError:
    if name == "ConnectDomainEventDeregisterAny":
        return InternalError("domain event not registered", domain=Domain.RPC)
    if name == "DomainOpenGraphics":
        return InternalError("No FD available at slot 0", domain=Domain.RPC)
    if name in ("DomainOpenGraphicsFD", "DomainFDAssociate"):
        detail = "fd passing is not supported by this connection"
        return ArgumentUnsupported(detail, domain=Domain.DOMAIN)
    return Unsupported(f"vir{name}", domain=_domain(name))


def _numbered(text: str) -> dict[int, str]:
    """Return the words of *text* by their numbers."""
    found = {}
    number = 0
    for word in text.split():
        if word.isdigit():
            number = int(word)
        else:
            found[number] = word
            number += 1
    return found


_MARKED: Final = _numbered(_FUNCTIONS)
_CALLS: Final = {number: name.rstrip("*") for number, name in _MARKED.items()}
_WRITERS: Final = frozenset(number for number, name in _MARKED.items() if name.endswith("*"))
