"""The methods of a connection that storage has no use for: they are there, and refuse.

Programs ask with ``hasattr`` what a binding knows, and for code 3 what a driver can do.

Source: libvirt's behaviour: the code, the name of the C function and the domain of each refusal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

from storaged.libvirt import errorconstants as numbers
from storaged.libvirt.errors import refuse_unsupported

_NETWORK: Final = """
listAllNetworks virConnectListAllNetworks
listDefinedNetworks virConnectNumOfDefinedNetworks
listNetworks virConnectNumOfNetworks
networkCreateXML virNetworkCreateXML
networkCreateXMLFlags virNetworkCreateXMLFlags
networkDefineXML virNetworkDefineXML
networkDefineXMLFlags virNetworkDefineXMLFlags
networkEventDeregisterAny virConnectNetworkEventDeregisterAny
networkEventRegisterAny virConnectNetworkEventRegisterAny
networkLookupByName virNetworkLookupByName
networkLookupByUUID virNetworkLookupByUUID
networkLookupByUUIDString virNetworkLookupByUUID
numOfDefinedNetworks virConnectNumOfDefinedNetworks
numOfNetworks virConnectNumOfNetworks
"""
_DOMAIN: Final = """
allocPages virNodeAllocPages
baselineCPU virConnectBaselineCPU
baselineHypervisorCPU virConnectBaselineHypervisorCPU
compareCPU virConnectCompareCPU
compareHypervisorCPU virConnectCompareHypervisorCPU
createLinux virDomainCreateXML
createXML virDomainCreateXML
createXMLWithFiles virDomainCreateXMLWithFiles
defineXML virDomainDefineXML
defineXMLFlags virDomainDefineXMLFlags
domainEventDeregister virConnectDomainEventDeregister
domainEventDeregisterAny virConnectDomainEventDeregisterAny
domainEventRegister virConnectDomainEventRegister
domainEventRegisterAny virConnectDomainEventRegisterAny
domainListGetStats virDomainListGetStats
domainXMLFromNative virConnectDomainXMLFromNative
domainXMLToNative virConnectDomainXMLToNative
getAllDomainStats virConnectGetAllDomainStats
getCPUMap virNodeGetCPUMap
getCPUModelNames virConnectGetCPUModelNames
getCPUStats virNodeGetCPUStats
getCellsFreeMemory virNodeGetCellsFreeMemory
getDomainCapabilities virConnectGetDomainCapabilities
getFreeMemory virNodeGetFreeMemory
getFreePages virNodeGetFreePages
getHostname virConnectGetHostname
getInfo virNodeGetInfo
getMaxVcpus virConnectGetMaxVcpus
getMemoryParameters virNodeGetMemoryParameters
getMemoryStats virNodeGetMemoryStats
getSEVInfo virNodeGetSEVInfo
getSecurityModel virNodeGetSecurityModel
getSysinfo virConnectGetSysinfo
getVersion virConnectGetVersion
listAllDomains virConnectListAllDomains
listDefinedDomains virConnectNumOfDefinedDomains
listDomainsID virConnectNumOfDomains
lookupByID virDomainLookupByID
lookupByName virDomainLookupByName
lookupByUUID virDomainLookupByUUID
lookupByUUIDString virDomainLookupByUUID
numOfDefinedDomains virConnectNumOfDefinedDomains
numOfDomains virConnectNumOfDomains
restore virDomainRestore
restoreFlags virDomainRestoreFlags
restoreParams virDomainRestoreParams
saveImageDefineXML virDomainSaveImageDefineXML
saveImageGetXMLDesc virDomainSaveImageGetXMLDesc
setMemoryParameters virNodeSetMemoryParameters
suspendForDuration virNodeSuspendForDuration
"""
_NODEDEV: Final = """
listAllDevices virConnectListAllNodeDevices
listDevices virNodeNumOfDevices
nodeDeviceCreateXML virNodeDeviceCreateXML
nodeDeviceDefineXML virNodeDeviceDefineXML
nodeDeviceEventDeregisterAny virConnectNodeDeviceEventDeregisterAny
nodeDeviceEventRegisterAny virConnectNodeDeviceEventRegisterAny
nodeDeviceLookupByName virNodeDeviceLookupByName
nodeDeviceLookupSCSIHostByWWN virNodeDeviceLookupSCSIHostByWWN
numOfDevices virNodeNumOfDevices
"""
_INTERFACE: Final = """
changeBegin virInterfaceChangeBegin
changeCommit virInterfaceChangeCommit
changeRollback virInterfaceChangeRollback
interfaceDefineXML virInterfaceDefineXML
interfaceLookupByMACString virInterfaceLookupByMACString
interfaceLookupByName virInterfaceLookupByName
listAllInterfaces virConnectListAllInterfaces
listDefinedInterfaces virConnectNumOfDefinedInterfaces
listInterfaces virConnectNumOfInterfaces
numOfDefinedInterfaces virConnectNumOfDefinedInterfaces
numOfInterfaces virConnectNumOfInterfaces
"""
_NWFILTER: Final = """
listAllNWFilterBindings virConnectListAllNWFilterBindings
listAllNWFilters virConnectListAllNWFilters
listNWFilters virConnectNumOfNWFilters
numOfNWFilters virConnectNumOfNWFilters
nwfilterBindingCreateXML virNWFilterBindingCreateXML
nwfilterBindingLookupByPortDev virNWFilterBindingLookupByPortDev
nwfilterDefineXML virNWFilterDefineXML
nwfilterDefineXMLFlags virNWFilterDefineXMLFlags
nwfilterLookupByName virNWFilterLookupByName
nwfilterLookupByUUID virNWFilterLookupByUUID
nwfilterLookupByUUIDString virNWFilterLookupByUUID
"""

_REFUSED: Final = (
    (numbers.VIR_FROM_NETWORK, _NETWORK),
    (numbers.VIR_FROM_DOMAIN, _DOMAIN),
    (numbers.VIR_FROM_NODEDEV, _NODEDEV),
    (numbers.VIR_FROM_INTERFACE, _INTERFACE),
    (numbers.VIR_FROM_NWFILTER, _NWFILTER),
)


class Unsupported:
    """The methods that refuse; `virConnect` inherits them."""

    _handle: object


def _refusal(method: str, function: str, domain: int) -> Callable[..., NoReturn]:
    def refuse(self: Unsupported, *args: object, **named: object) -> NoReturn:
        refuse_unsupported(function, domain, pointer=self._handle)

    refuse.__name__ = method
    refuse.__qualname__ = f"virConnect.{method}"
    refuse.__doc__ = f"Refuse: a storage driver has no {function}."
    return refuse


for _domain, _table in _REFUSED:
    for _line in _table.split("\n")[1:-1]:
        _method, _, _function = _line.partition(" ")
        setattr(Unsupported, _method, _refusal(_method, _function, _domain))
