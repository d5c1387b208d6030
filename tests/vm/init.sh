#!/bin/busybox sh
# The first program of the guest: lays this machine's root together and hands over to guest.sh.
#
#   /mnt/host    "/" of the machine that runs QEMU, read only
#   /mnt/layer   the packages it lacks, read only
#   /mnt/tree    a copy of the checkout as it was when the run began
#   /mnt/rw      what the guest writes, in memory
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev

fail() {
    echo "test-vm: cannot mount $1"
    $b poweroff -f
}

# a probe of the accelerator ends here
case "$($b cat /proc/cmdline)" in
*vm-probe-ok*)
    echo vm-probe-ok
    $b poweroff -f
    ;;
esac

for module in $($b cat /modules/order); do
    $b insmod "/modules/$module"
done
$b mkdir -p /mnt/host /mnt/layer /mnt/tree /mnt/rw
options=trans=virtio,version=9p2000.L,msize=512000
for share in host layer tree; do
    $b mount -t 9p -o $options,cache=loose,ro $share /mnt/$share || fail $share
done
$b mount -t tmpfs -o size=75%,mode=755 tmpfs /mnt/rw
$b mkdir /mnt/rw/upper /mnt/rw/work
lower=/mnt/tree:/mnt/layer:/mnt/host
$b mount -t overlay -o lowerdir=$lower,upperdir=/mnt/rw/upper,workdir=/mnt/rw/work overlay \
    /newroot || fail root
$b mkdir -p /newroot/out
$b mount -t 9p -o $options,cache=none out /newroot/out || fail out
$b cp /guest.sh /newroot/.guest.sh
for place in dev proc sys; do
    $b mount --move /$place /newroot/$place
done
exec $b switch_root /newroot /bin/bash /.guest.sh
