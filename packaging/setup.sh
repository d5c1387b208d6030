#!/bin/sh
# Make this checkout ready to work in: a virtual environment with storaged (editable) and the
# development tools, and for tests the programs that they call. It says nothing and ends at once if
# all is there.
#
#     packaging/setup.sh [--tools] [VENV [PYTHON]]
#
# Root installs missing Debian packages; an ordinary user is told which tests will be skipped.
set -eu
cd "$(dirname "$0")/.."
tools_too=no
if [ "${1:-}" = --tools ]; then
    tools_too=yes
    shift
fi
PATH=$PATH:/usr/sbin:/sbin
venv=${1:-.venv}
[ $# -lt 2 ] || PYTHON=$2
export PYTHON="${PYTHON:-}"

# the last whose modules run under the Python of Debian 12, and the first with virt_volume
ansible_version=12.3.0
ansible_core_version=2.18.19

# command, Debian package
tools='
qemu-img            qemu-utils
qemu-storage-daemon qemu-system-common
qemu-system-x86_64  qemu-system-x86
mkfs.ext4           e2fsprogs
mkfs.xfs            xfsprogs
mkfs.btrfs          btrfs-progs
setfacl             acl
losetup             mount
virsh               libvirt-clients
libvirtd            libvirt-daemon
cryptsetup          cryptsetup-bin
strace              strace
7z                  p7zip-full
zsh                 zsh
fish                fish
genisoimage         genisoimage
dbus-daemon         dbus-daemon
pkaction            polkitd
systemd-analyze     systemd
groff               groff-base
virt-clone          virtinst
depmod              kmod
setpriv             util-linux
lvm                 lvm2
iscsiadm            open-iscsi
tgtd                tgt
showmount           nfs-common
mkfs.vfat           dosfstools
parted              parted
ceph-mon            ceph-mon
ceph-osd            ceph-osd
ceph-mgr            ceph-mgr
'

missing_packages() {
    echo "$tools" | while read -r tool package; do
        [ -z "$tool" ] || command -v "$tool" >/dev/null || echo "$package"
    done
    # the tests drive libvirt with its own bindings, which come for Debian's Python and Perl only
    /usr/bin/python3 -c 'import libvirt' 2>/dev/null || echo python3-libvirt
    perl -MSys::Virt -e 1 2>/dev/null || echo libsys-virt-perl
    /usr/bin/python3 -c 'import lxml' 2>/dev/null || echo python3-lxml
    /usr/bin/python3 -c 'import rados' 2>/dev/null || echo python3-rados
    /usr/bin/python3 -c 'import rbd' 2>/dev/null || echo python3-rbd
    # libvirtd's own rbd backend, to compare with
    find /usr/lib -name libvirt_storage_backend_rbd.so 2>/dev/null | grep -q . ||
        echo libvirt-daemon-driver-storage-rbd
}

may_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null
}

# Some packages bring services (an iSCSI target, rpcbind, libvirtd). Tests start their own; this
# machine is to listen nowhere because of us.
policy=/usr/sbin/policy-rc.d
start_no_services() {
    [ ! -e "$policy" ] || return 0
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    policy_is_ours=yes
}

# apt_install PACKAGE...: fetch the lists of packages only if they are missing or too old.
apt_install() {
    echo "setup: installing $*"
    start_no_services
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -qq --no-install-recommends "$@" >"$log" 2>&1 ||
        { quietly apt-get update -qq &&
            quietly apt-get install -qq --no-install-recommends "$@"; }
}

install_tools() {
    packages=$(missing_packages)
    [ -n "$packages" ] || return 0
    # shellcheck disable=SC2086
    if may_install && apt_install $packages; then return 0; fi
    echo "setup: the tests that need these Debian packages will be skipped:" $packages >&2
}

find_python() {
    python=$(packaging/pythons.sh | head -n 1 | cut -d ' ' -f 2-)
    if [ -z "$python" ] && may_install; then
        apt_install python3 python3-venv
        python=$(packaging/pythons.sh | head -n 1 | cut -d ' ' -f 2-)
    fi
    [ -n "$python" ] && return
    echo "setup: no Python >= 3.11 with venv and ensurepip was found." >&2
    echo "On Debian: apt-get install python3 python3-venv. Or name one: make setup PYTHON=..." >&2
    exit 1
}

# quietly COMMAND...: show what it printed only if it fails.
quietly() {
    if "$@" >"$log" 2>&1; then return 0; fi
    tail -n 40 "$log" >&2
    return 1
}

make_venv() {
    find_python
    echo "setup: making $venv with $python"
    rm -rf "$venv"
    quietly "$python" -m venv "$venv"
    # --group came with pip 25.1
    quietly "$venv/bin/python" -m pip install --upgrade 'pip>=25.1'
    # compat: a plain path entry. Type checkers and editors follow it, and it does not cost every
    # program the 15 ms that setuptools' import hook does.
    quietly "$venv/bin/python" -m pip install --config-settings editable_mode=compat \
        --group dev --editable .
    # so that programs start quickly also where Python may not write byte code itself
    quietly "$venv/bin/python" -m compileall -q storaged backends formats
    touch "$venv/.ready"
}

# Ansible's modules for libvirt come in one archive with a hundred other collections: 55 MB, of
# which we keep the modules and what they need to run, 8 MB, outside the tree.
install_ansible() {
    ansible=$HOME/.cache/storaged/ansible-$ansible_version
    [ ! -d "$ansible" ] || return 0
    echo "setup: fetching Ansible's modules for libvirt"
    fetched=$(mktemp -d)
    if quietly "$venv/bin/python" -m pip download --no-deps --only-binary :all: \
        --dest "$fetched" "ansible==$ansible_version" "ansible-core==$ansible_core_version" &&
        quietly "$venv/bin/python" packaging/unpack.py "$fetched/out" \
            "$fetched"/ansible_core-*.whl ansible/ &&
        quietly "$venv/bin/python" packaging/unpack.py "$fetched/out" \
            "$fetched"/ansible-*.whl ansible_collections/community/libvirt/; then
        mkdir -p "${ansible%/*}"
        mv "$fetched/out" "$ansible"
    else
        echo "setup: without them their tests will be skipped" >&2
    fi
    rm -rf "$fetched"
}

clean_up() {
    rm -f "$log"
    [ "$policy_is_ours" = no ] || rm -f "$policy"
}

log=$(mktemp)
policy_is_ours=no
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
[ "$tools_too" = no ] || install_tools
if [ ! -e "$venv/.ready" ] || [ pyproject.toml -nt "$venv/.ready" ]; then make_venv; fi
[ "$tools_too" = no ] || install_ansible
