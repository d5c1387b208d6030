#!/bin/bash
# Process 1 of the guest in its final root: a small system, then /out/job, then the end.
#
# There is no systemd: what it would do at boot for storage (modules, udev, directories in /run,
# users that packages make when they are installed) is done here. /out/job is sourced; it calls
# `batch`. Its results go to /out, which is on the host. Guests that run side by side share it, and
# the batches: who comes first takes one. $guest, from the kernel's command line, is the number.

exec </dev/null >/dev/hvc0 2>&1
unset BASH_ENV ENV
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LC_ALL=C.UTF-8 TERM=dumb VMTEST=1 PYTHONDONTWRITEBYTECODE=1

power_off() {
    sync
    echo o >/proc/sysrq-trigger
    while :; do pause 1; done
}

make_system() {
    mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /run
    mkdir -p /run/lock/iscsi /run/udev /run/lvm /run/rpcbind /run/samba /dev/pts /dev/shm
    mkdir -p /var/lib/nfs/v4recovery /var/lib/samba/private /var/cache/samba /scratch
    mount -t devpts -o gid=5,mode=620,ptmxmode=000 devpts /dev/pts
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    mount -t cgroup2 none /sys/fs/cgroup
    ln -sfn /proc/self/fd /dev/fd
    for stream in stdin:0 stdout:1 stderr:2; do
        ln -sfn "fd/${stream#*:}" "/dev/${stream%:*}"
    done
    hostname vmtest
    ip link set lo up
    echo 127.0.0.1 vmtest >>/etc/hosts
    for user in _rpc:397 statd:398; do
        grep -q "^${user%:*}:" /etc/passwd ||
            echo "${user%:*}:x:${user#*:}:65534::/run/rpcbind:/usr/sbin/nologin" >>/etc/passwd
    done
    # what the host has configured for itself
    rm -rf /etc/lvm/backup /etc/lvm/archive /etc/lvm/devices /etc/exports /etc/exports.d
    rm -rf /etc/iscsi/{nodes,send_targets,ifaces} /var/lib/iscsi /etc/multipath.conf /etc/multipath
    touch /etc/exports
}

mount_scratch() {
    for disk in /sys/block/vd*; do
        [ "$(cat "$disk/serial")" = scratch ] || continue
        mount -o noatime,discard "/dev/${disk##*/}" /scratch && export TMPDIR=/scratch
    done
}

start_udev() {
    modprobe -a loop virtio_scsi sd_mod fuse
    /lib/systemd/systemd-udevd --daemon
    # not all there is: that takes five seconds more and loads thirty modules
    udevadm trigger --action=add --subsystem-match=block --subsystem-match=virtio-ports \
        --subsystem-match=misc --subsystem-match=mem
    udevadm settle --timeout=30
}

# pause SECONDS: without a process, which costs the emulated machine a tenth of a second.
pause() {
    read -r -t "$1" -u "$idle" _
}

# gone PID SECONDS: wait for the end of a process for that long.
gone() {
    local -i until=$((SECONDS + $2))
    while kill -0 "$1" 2>/dev/null; do
        ((SECONDS < until)) || return 1
        pause 0.2
    done
    return 0
}

# let_go: end what holds processes in the kernel, where no signal reaches them.
let_go() {
    dmsetup info --columns --noheadings --options name,suspended 2>/dev/null |
        sed -n 's/:Suspended$//p' | while read -r name; do
        dmsetup resume "$name"
    done
    for session in /sys/class/iscsi_session/session*; do
        [ -e "$session" ] && echo 1 >"$session/recovery_tmo"
    done
    umount --all --force --lazy --types nfs,nfs4,cifs,fuse.glusterfs
}

# batch NAME SECONDS COMMAND...: run a command within a limit, and write its status to /out; unless
# another guest has it. A command that passes the limit is killed; what it left is taken down, so
# that it costs no other batch.
batch() {
    local name=$1 pid status
    [ ! -e /out/stop ] && mkdir "/out/$name.taken" 2>/dev/null || return 0
    local -i limit=$2 began=$SECONDS
    shift 2
    echo "=== $name (limit ${limit} s)"
    setsid "$@" &
    pid=$!
    if ! gone $pid "$limit"; then
        echo "=== $name took more than ${limit} s and is killed"
        kill -TERM -- "-$pid"
        gone $pid 5 || kill -KILL -- "-$pid"
        gone $pid 5 || { let_go; gone $pid 10; }
    fi
    if kill -0 $pid 2>/dev/null; then
        echo "=== $name hangs in the kernel and is left behind"
        status=137
    else
        wait $pid
        status=$?
    fi
    # 0 and 1: pytest came to its end and has cleaned up
    if ((status > 1)); then
        pkill -KILL --session $pid
        let_go
    fi
    echo "$status $((SECONDS - began))" >"/out/$name.status"
    return "$status"
}

make_system 2>>"/out/system.$guest.log"
mkfifo /run/idle
exec {idle}<>/run/idle
mount_scratch
start_udev 2>>"/out/system.$guest.log"
read -r uptime _ </proc/uptime
echo "=== the guest is up after ${uptime} s"
# shellcheck disable=SC1091
. /out/job
echo done >"/out/guest.$guest.status"
power_off
