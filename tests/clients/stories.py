"""What virsh is made to do: commands in their order, by theme, and the files that they read.

``$DIR`` is the daemon's directory, ``$DIR/files`` the client's. Each story works in pools of its
own, so that any of them can be run alone.
"""

from __future__ import annotations

from collections.abc import Iterable

MIB = 1 << 20


def _dir_pool(name: str) -> list[str]:
    return [
        f"pool-define-as {name} dir --target $DIR/{name}",
        f"pool-build {name}",
        f"pool-start {name}",
    ]


def _pool_file(name: str, number: int, more: str = "") -> str:
    return (
        f"<pool type='dir'><name>{name}</name>"
        f"<uuid>00000000-0000-4000-8000-{number:012}</uuid>{more}"
        f"<target><path>$DIR/{name}</path></target></pool>\n"
    )


def _volume_file(name: str, capacity: str, target: str = "", top: str = "") -> str:
    return (
        f"<volume><name>{name}</name><capacity unit='KiB'>{capacity}</capacity>"
        f"<allocation>0</allocation>{top}<target>{target}</target></volume>\n"
    )


#: Name below ``$DIR/files`` and text.
FILES = {
    "life.xml": _pool_file("life", 1),
    "life-again.xml": _pool_file("life", 1, "<source/>"),
    "transient.xml": _pool_file("transient", 2),
    "unknown-element.xml": _pool_file("odd", 3, "<surprise/>"),
    "no-name.xml": "<pool type='dir'><target><path>/x</path></target></pool>",
    "no-type.xml": "<pool><name>x</name></pool>",
    "odd-type.xml": "<pool type='cloud'><name>x</name></pool>",
    "broken.xml": "<pool type='dir'",
    "volume.xml": _volume_file("from-file.raw", "1024", "<format type='raw'/>"),
    "qcow2.xml": _volume_file(
        "from-file.qcow2", "2048", "<format type='qcow2'/><compat>1.1</compat>"
    ),
    "modes.xml": _volume_file(
        "modes.img", "4", "<permissions><mode>0640</mode><owner>0</owner></permissions>"
    ),
    "strange-volume.xml": _volume_file("strange", "4", top="<surprise/>"),
    "copy.xml": _volume_file("copy.raw", "1024", "<format type='raw'/>"),
    "copy.qcow2.xml": _volume_file("copy.qcow2", "4096", "<format type='qcow2'/>"),
    "clash.xml": _volume_file("source.raw", "1024"),
    "netfs-query.xml": "<source><host name='localhost'/></source>",
}

#: Name below ``$DIR/files``: what is in it, as (offset, bytes), and its size.
DATA: dict[str, tuple[Iterable[tuple[int, bytes]], int]] = {
    "small.img": ([(0, b"storaged " * 1000)], 9000),
    "sparse.img": ([(0, b"A" * 65536), (2 * MIB, b"B" * 65536)], 4 * MIB),
    "empty.img": ([], 0),
    "hollow.img": ([], MIB),
}

STORIES = {
    "the connection": [
        "uri",
        "capabilities",
        "version",
        "pool-capabilities",
        "hostname",
        "list --all",
        "nodeinfo",
        "net-list",
        "iface-list",
        "nwfilter-list",
        "sysinfo",
        "maxvcpus",
        "freecell",
        "nodedev-list",
        "domid nobody",
        "pool-list",
        "event --list",
        "event --event lifecycle --timeout 1",
        "pool-event --list",
    ],
    "a pool's life": [
        "pool-define $DIR/files/life.xml",
        "pool-info life",
        "pool-dumpxml life",
        "pool-refresh life",
        "pool-destroy life",
        "pool-start life",
        "pool-delete life",
        "pool-build life",
        "pool-build life",
        "pool-build life --overwrite",
        "pool-build life --no-overwrite",
        "pool-build life --overwrite --no-overwrite",
        "pool-start life --overwrite",
        "pool-start life",
        "pool-start life",
        "pool-build life",
        "pool-delete life",
        "pool-undefine life",
        "pool-info life",
        "pool-info life --bytes",
        "pool-uuid life",
        "pool-name 00000000-0000-4000-8000-000000000001",
        "pool-info 00000000-0000-4000-8000-000000000001",
        "pool-dumpxml life",
        "pool-dumpxml life --xpath //target",
        "pool-dumpxml life --inactive",
        "pool-autostart life",
        "pool-autostart life",
        "pool-info life",
        "pool-autostart life --disable",
        "pool-refresh life",
        "pool-edit life",
        "pool-define $DIR/files/life-again.xml",
        "pool-destroy life",
        "pool-destroy life",
        "pool-delete life",
        "pool-delete life",
        "pool-autostart life",
        "pool-start life",
        "pool-start life --build",
        "pool-destroy life",
        "pool-undefine life",
        "pool-undefine life",
        "pool-info life",
        "pool-uuid life",
        "pool-name 00000000-0000-4000-8000-000000000001",
    ],
    "transient pools": [
        "pool-create $DIR/files/transient.xml",
        "pool-create $DIR/files/transient.xml --build",
        "pool-create $DIR/files/transient.xml",
        "pool-info transient",
        "pool-autostart transient",
        "pool-autostart transient --disable",
        "pool-undefine transient",
        "pool-define $DIR/files/transient.xml",
        "pool-info transient",
        "pool-destroy transient",
        "pool-create $DIR/files/transient.xml --no-overwrite",
        "pool-create $DIR/files/transient.xml --overwrite",
        "pool-destroy transient",
        "pool-undefine transient",
        "pool-create-as fleeting dir --target $DIR/fleeting --build",
        "pool-info fleeting",
        "pool-destroy fleeting",
        "pool-info fleeting",
    ],
    "definitions": [
        "pool-define-as d1 dir --target $DIR/d1 --print-xml",
        "pool-define-as d1 dir --target $DIR/d1",
        "pool-define-as d1 dir --target $DIR/other",
        "pool-define-as d2 dir --target $DIR/d1",
        "pool-define-as d/3 dir --target $DIR/d3",
        "pool-define-as d4 dir",
        "pool-define-as d5 cloud --target $DIR/d5",
        "pool-dumpxml d1",
        "pool-start d1",
        "pool-undefine d1",
        "pool-undefine d2",
    ],
    "bad descriptions": [
        f"{command} $DIR/files/{name}.xml"
        for command in ("pool-define", "pool-create", "pool-define --validate")
        for name in ("no-name", "no-type", "odd-type", "broken", "unknown-element", "nothing")
    ]
    + ["pool-undefine odd"],
    "lists of pools": [
        "pool-define-as l1 dir --target $DIR/l1",
        "pool-create-as l2 dir --target $DIR/l2 --build",
        "pool-define-as l3 dir --target $DIR/l3",
        "pool-build l3",
        "pool-start l3",
        "pool-autostart l3",
        "pool-list",
        *(
            f"pool-list {option}"
            for option in (
                "--all",
                "--inactive",
                "--transient",
                "--persistent",
                "--autostart",
                "--no-autostart",
                "--all --transient",
                "--all --persistent",
                "--all --autostart",
                "--all --no-autostart --persistent",
                "--inactive --transient",
                "--type dir",
                "--type dir --all",
                "--type netfs --all",
                "--type dir,netfs --inactive",
                "--type rbd --all",
                "--type cloud",
                "--details",
                "--all --details",
                "--name",
                "--all --name",
                "--all --uuid",
                "--details --name",
            )
        ),
        *(f"pool-destroy {name}" for name in ("l2", "l3")),
        "pool-list --all",
        *(f"pool-undefine {name}" for name in ("l1", "l2", "l3")),
    ],
    "sources": [
        "find-storage-pool-sources dir",
        "find-storage-pool-sources cloud",
        "find-storage-pool-sources-as dir",
        "find-storage-pool-sources-as dir --host h --port 1 --initiator i",
        "find-storage-pool-sources dir $DIR/files/nothing.xml",
        "find-storage-pool-sources dir $DIR/files/broken.xml",
    ],
    "creating volumes": [
        *_dir_pool("create"),
        "vol-create-as create a.raw 1M",
        "vol-create-as create a.raw 1M",
        "vol-create-as create b.raw 8192 --allocation 4096",
        "vol-create-as create c.raw 1M --allocation 0",
        "vol-create-as create full.raw 64k --allocation 64k",
        "vol-create-as create d.raw 16M --prealloc-metadata",
        "vol-create-as create odd 4M --format cloud",
        "vol-create-as create dir 4M --format dir",
        "vol-create-as create a/b 4M",
        "vol-create-as create minus -1",
        "vol-create-as create j 1M --print-xml",
        "vol-create create $DIR/files/volume.xml",
        "vol-create create $DIR/files/volume.xml",
        "vol-create create $DIR/files/modes.xml",
        "vol-create create $DIR/files/strange-volume.xml --validate",
        "vol-create create $DIR/files/strange-volume.xml",
        "vol-create create $DIR/files/broken.xml",
        "vol-create nobody $DIR/files/volume.xml",
        "vol-list create",
        "vol-list create --details",
        "vol-list nobody",
        *(
            f"{command} --pool create {name}"
            for name in ("a.raw", "b.raw", "dir", "modes.img")
            for command in ("vol-info", "vol-dumpxml", "vol-info --physical --bytes")
        ),
        "pool-info create --bytes",
        "pool-refresh create",
        "pool-info create --bytes",
        "vol-list create --details",
        "pool-dumpxml create",
    ],
    "creating images": [
        *_dir_pool("images"),
        "vol-create-as images base.raw 1M",
        "vol-create-as images a.qcow2 16M --format qcow2 --allocation 0",
        "vol-create-as images b.qcow2 16M --format qcow2 --prealloc-metadata",
        "vol-create-as images c.vmdk 4M --format vmdk",
        "vol-create-as images d.qcow2 16M --format qcow2 --backing-vol a.qcow2 "
        "--backing-vol-format qcow2",
        "vol-create-as images e.qcow2 16M --format qcow2 --backing-vol $DIR/images/base.raw "
        "--backing-vol-format raw",
        "vol-create-as images f.qcow2 16M --format qcow2 --backing-vol nobody "
        "--backing-vol-format raw",
        "vol-create-as images g.vmdk 4M --format vmdk --prealloc-metadata",
        "vol-create images $DIR/files/qcow2.xml --prealloc-metadata",
        "vol-list images",
        *(
            f"{command} --pool images {name}"
            for name in ("a.qcow2", "b.qcow2", "c.vmdk", "d.qcow2", "e.qcow2", "from-file.qcow2")
            for command in ("vol-info", "vol-dumpxml", "vol-info --physical --bytes")
        ),
        "vol-list images --details",
        "pool-info images --bytes",
        "pool-refresh images",
        "vol-list images --details",
    ],
    "validated volumes": [
        *_dir_pool("valid"),
        "vol-create valid $DIR/files/modes.xml --validate",
        "vol-create valid $DIR/files/clash.xml",
        "vol-create-from valid $DIR/files/copy.xml source.raw --inputpool valid --validate",
    ],
    "names, keys and paths": [
        *_dir_pool("names"),
        "vol-create-as names one 4096",
        "vol-create-as names 'two words' 4096",
        *(f"{command} one --pool names" for command in ("vol-path", "vol-key")),
        *(
            f"{command} $DIR/names/one"
            for command in ("vol-path", "vol-key", "vol-name", "vol-pool", "vol-info")
        ),
        "vol-pool $DIR/names//one/ --uuid",
        "vol-pool one",
        "vol-path 'two words' --pool names",
        "vol-info nobody --pool names",
        "vol-info $DIR/names/nobody",
        "vol-info $DIR/elsewhere",
        "vol-info one",
        "vol-info $DIR/names/one --pool nobody",
        "vol-key nobody",
        "vol-delete $DIR/names/one",
        "vol-delete 'two words' names",
        "vol-delete one --pool names",
        "vol-list names",
        "pool-destroy names",
        "vol-list names",
        "vol-info one --pool names",
        "vol-create-as names three 4096",
    ],
    "clones": [
        *_dir_pool("clones"),
        *_dir_pool("target"),
        "vol-create-as clones source.raw 1M --allocation 0",
        "vol-upload source.raw $DIR/files/small.img --pool clones",
        "vol-clone source.raw twin.raw --pool clones",
        "vol-clone source.raw twin.raw --pool clones",
        "vol-clone source.raw printed --pool clones --print-xml",
        "vol-clone source.raw alike.raw clones --reflink",
        "vol-clone source.raw metadata.raw --pool clones --prealloc-metadata",
        "vol-clone nobody twin --pool clones",
        "vol-clone source.raw a/b --pool clones",
        "vol-create-from target $DIR/files/copy.xml source.raw --inputpool clones",
        "vol-create-from clones $DIR/files/clash.xml source.raw --inputpool clones",
        "vol-create-from target $DIR/files/volume.xml $DIR/clones/source.raw",
        "vol-create-from target $DIR/files/broken.xml source.raw --inputpool clones",
        *(f"vol-dumpxml {name} --pool clones" for name in ("twin.raw", "metadata.raw")),
        "vol-list target --details",
        "vol-download twin.raw $DIR/files/out-twin --pool clones",
        "vol-download copy.raw $DIR/files/out-copy --pool target",
    ],
    "clones of images": [
        *_dir_pool("image-clones"),
        *_dir_pool("image-target"),
        "vol-create-as image-clones source.qcow2 2M --format qcow2",
        "vol-create-as image-clones source.raw 2M",
        "vol-clone source.qcow2 twin.qcow2 --pool image-clones",
        "vol-clone source.qcow2 metadata.qcow2 --pool image-clones --prealloc-metadata",
        "vol-create-from image-target $DIR/files/copy.qcow2.xml source.raw "
        "--inputpool image-clones",
        "vol-create-from image-target $DIR/files/copy.xml source.qcow2 --inputpool image-clones",
        "vol-create-from image-target $DIR/files/volume.xml $DIR/image-clones/source.qcow2 "
        "--prealloc-metadata",
        "vol-dumpxml twin.qcow2 --pool image-clones",
    ],
    "sizes": [
        *_dir_pool("sizes"),
        "vol-create-as sizes r 1M --allocation 0",
        *(
            f"vol-resize r {words} --pool sizes"
            for words in (
                "2M",
                "1M",
                "1M --shrink",
                "512k --delta",
                "512k --delta --shrink",
                "--capacity -512k --shrink",
                "0",
                "3M --allocate",
                "1G --allocate",
                "900P",
                "4097",
            )
        ),
        "vol-resize nobody 2M --pool sizes",
        "vol-info r --pool sizes --bytes",
        "pool-info sizes --bytes",
    ],
    "sizes of images": [
        *_dir_pool("image-sizes"),
        "vol-create-as image-sizes q 1M --format qcow2",
        "vol-create-as image-sizes v 1M --format vmdk",
        *(
            f"vol-resize q {words} --pool image-sizes"
            for words in (
                "2M",
                "1M",
                "512k --delta",
                "0",
                "1G --allocate",
                "900P",
                "1M --shrink",
            )
        ),
        "vol-resize v 2M --pool image-sizes",
        "vol-info q --pool image-sizes",
    ],
    "wiping": [
        *_dir_pool("wiping"),
        "vol-create-as wiping w 128k",
        "vol-upload w $DIR/files/small.img --pool wiping",
        *(
            f"vol-wipe w --pool wiping --algorithm {name}"
            for name in ("zero", "trim", "nothing", "nnsa", "random")
        ),
        "vol-wipe w --pool wiping",
        "vol-wipe nobody --pool wiping",
        "vol-download w $DIR/files/out-wiped --pool wiping",
        "vol-info w --pool wiping --bytes",
    ],
    "transfers": [
        *_dir_pool("transfers"),
        "vol-create-as transfers t 1M --allocation 0",
        "vol-create-as transfers sparse 4M --allocation 0",
        "vol-upload t $DIR/files/small.img --pool transfers",
        "vol-upload t $DIR/files/small.img --pool transfers --offset 100000 --length 9000",
        "vol-upload t $DIR/files/empty.img --pool transfers",
        "vol-upload t $DIR/files/nothing.img --pool transfers",
        "vol-upload nobody $DIR/files/small.img --pool transfers",
        "vol-upload sparse $DIR/files/sparse.img --pool transfers --sparse",
        "pool-refresh transfers",
        "vol-info sparse --pool transfers --bytes",
        "vol-download t $DIR/files/out-whole --pool transfers",
        "vol-download t $DIR/files/out-part --pool transfers --offset 100000 --length 5000",
        "vol-download t $DIR/files/out-past --pool transfers --offset 1048570 --length 5000",
        "vol-download t $DIR/files/out-beyond --pool transfers --offset 2097152",
        "vol-download sparse $DIR/files/out-sparse --pool transfers --sparse",
        "vol-download sparse $DIR/files/out-full --pool transfers",
        "vol-download nobody $DIR/files/out-nothing --pool transfers",
        "vol-upload sparse $DIR/files/hollow.img --pool transfers --sparse",
        "pool-refresh transfers",
        "vol-info sparse --pool transfers --bytes",
    ],
}

#: What a pool of another type is made of; it is defined, looked at and undefined.
OTHER_TYPES = {
    "netfs": "--source-host h --source-path /export --target $DIR/other "
    "--source-format nfs --source-protocol-ver 4.1",
    "fs": "--source-dev /dev/nothing --source-format ext4 --target $DIR/other",
    "logical": "--source-name vg9 --target /dev/vg9",
    "iscsi": "--source-host h --source-dev iqn.2026-01.org.example:x "
    "--target /dev/disk/by-path --auth-type chap --auth-username me --secret-usage secret",
    "rbd": "--source-host h --source-name pool --auth-type ceph --auth-username me "
    "--secret-uuid 00000000-0000-4000-8000-00000000000a",
    "scsi": "--adapter-name scsi_host0 --target /dev/disk/by-path",
    "disk": "--source-dev /dev/nothing --source-format gpt --target /dev",
    "mpath": "--target /dev/mapper",
    "zfs": "--source-name tank",
    "gluster": "--source-host h --source-name volume --source-path /d",
    "iscsi-direct": "--source-host h --source-dev iqn.2026-01.org.example:y "
    "--source-initiator iqn.2026-01.org.example:me",
    "vstorage": "--source-name cluster --target $DIR/other",
}

#: Files that stories make: what they hold is compared too.
MADE = {
    "clones": ("out-twin", "out-copy"),
    "wiping": ("out-wiped",),
    "transfers": ("out-whole", "out-part", "out-past", "out-beyond", "out-sparse", "out-full"),
}

#: Commands of somebody who may only look; the pool ``seen`` has one volume ``v``.
READ_ONLY = [
    "pool-list --all --details",
    "pool-info seen",
    "pool-dumpxml seen",
    "pool-capabilities",
    "capabilities",
    "vol-list seen --details",
    "vol-info v --pool seen",
    "vol-dumpxml v --pool seen",
    "vol-path v --pool seen",
    "vol-pool $DIR/seen/v",
    "pool-define-as other dir --target $DIR/other",
    "pool-create-as other dir --target $DIR/other",
    "pool-start seen",
    "pool-destroy seen",
    "pool-delete seen",
    "pool-build seen",
    "pool-undefine seen",
    "pool-refresh seen",
    "pool-autostart seen",
    "vol-create-as seen w 4096",
    "vol-clone v w --pool seen",
    "vol-delete v --pool seen",
    "vol-resize v 8192 --pool seen",
    "vol-wipe v --pool seen",
    "vol-upload v $DIR/files/small.img --pool seen",
    "vol-download v $DIR/files/out-read-only --pool seen",
    "find-storage-pool-sources-as netfs --host localhost",
]

#: Commands run as processes of their own, for their exit status; after the setting up of ``seen``.
ALONE = [
    "uri",
    "version",
    "pool-info seen",
    "pool-info nobody",
    "pool-start seen",
    "pool-list --type cloud",
    "vol-info v --pool seen",
    "vol-info w --pool seen",
    "vol-delete w --pool seen",
    "vol-create-as seen v 4096",
    "vol-resize v 0 --pool seen",
    "capabilities",
    "list",
]
