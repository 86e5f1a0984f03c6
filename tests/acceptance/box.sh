#!/bin/sh
# Boots this machine's systemd as process 1 of namespaces of its own, and runs PROBE in there as a service.
#   unshare --mount --uts --ipc --net --pid --fork --kill-child box.sh FOLDER RELAY PROBE
# FOLDER has etc/ (laid over /etc) and takes what the probe writes to /out; RELAY becomes /opt/relay. Nothing that happens
# reaches this machine: files go into memory, kernel settings are read-only, the network is a loopback alone.
set -eu
folder=$1 relay=$2 probe=$3
root=$folder/root
mkdir -p "$folder/memory" "$folder/cgroup" "$folder/out" "$root"
mount --make-rprivate /
mount -t tmpfs tmpfs "$folder/memory"
mkdir "$folder/memory/upper" "$folder/memory/work"
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/memory/upper,workdir=$folder/memory/work" "$root"
mkdir -p "$root/proc" "$root/sys" "$root/run" "$root/tmp" "$root/dev" "$root/opt/relay" "$root/out" "$root/old"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mount --rbind /dev "$root/dev"
mount -t sysfs -o ro sysfs "$root/sys"
mount --bind "$relay" "$root/opt/relay"
mount --bind "$folder/out" "$root/out"
# Only what is laid over counts as configuration.
rm -rf "$root/etc/systemd/system" "$root/etc/fstab"
cp -a "$folder/etc/." "$root/etc/"
cp "$probe" "$root/etc/probe"
chmod a+x "$root/root"
hostname box
ip link set lo up
# A group of its own, so that nothing is left among this machine's.
mount -t cgroup2 cgroup2 "$folder/cgroup"
group=$folder/cgroup/relay-box-$(cat /proc/sys/kernel/random/uuid)
mkdir "$group"
echo $$ >"$group/cgroup.procs"
code=0
unshare --cgroup --mount --pid --fork --kill-child sh -euc '
  mount -t proc proc "$1/proc"
  mount --bind "$1/proc/sys" "$1/proc/sys"
  mount -o remount,bind,ro "$1/proc/sys"
  mount -t cgroup2 cgroup2 "$1/sys/fs/cgroup"
  cd "$1"
  # Not chroot: within one, no service could have a user namespace.
  pivot_root . old
  cd /
  umount -l /old
  exec env -i container=box PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=probe.target \
    --log-target=journal --show-status=no
' box "$root" || code=$?
echo $$ >"$folder/cgroup/cgroup.procs"
find "$group" -depth -type d -exec rmdir {} +
exit "$code"
