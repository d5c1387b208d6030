#!/bin/bash
# storagectl at work: a pool, volumes of three formats, bytes in and out, a clone, a delete.
#
# All state lies below demo-root/ in the current directory; the host's own pools are not touched.
# Every command is shown as you would type it. The first one that fails ends the demo.
set -euo pipefail
cd "$(dirname "$0")/.."

root=demo-root
images=$root/images
rm -rf "$root"
mkdir "$root"

show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

ctl() {
    show storagectl --root "$root" "$@"
}

ctl pool ensure default --type dir --target "$PWD/$images"
ctl pool ensure default --type dir --target "$PWD/$images"
ctl pool list

ctl vol create-as default disk.raw 1G
ctl vol create-as default disk.qcow2 10G --format qcow2
ctl vol create-as default disk.vmdk 10G --format vmdk
ctl vol list default --details

# A real file goes in and comes back; the volume may be larger, so as many bytes are read.
file=$root/upload.bin
tar -cf "$file" storaged/*.py backends formats
size=$(stat -c %s "$file")
ctl vol upload disk.raw "$file" --pool default
ctl vol download disk.raw "$root/download.bin" --pool default --length "$size"
show sha256sum "$file" "$root/download.bin"
show cmp "$file" "$root/download.bin"

ctl vol clone disk.raw copy.raw --pool default
ctl vol info copy.raw --pool default
show cmp --bytes "$size" "$images/disk.raw" "$images/copy.raw"

ctl vol delete disk.vmdk --pool default
ctl vol list default --details

if storagectl --root "$root" vol info disk.vmdk --pool default >/dev/null 2>&1; then
    echo "disk.vmdk is still there" >&2
    exit 1
fi
ctl pool stop default
printf '\nAll of it worked. What it made is below %s/; "make clean" removes it.\n' "$root"
