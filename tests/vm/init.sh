#!/bin/bash
# Process 1 of the guest. Disks: vda the root (a snapshot), vdb input (tar), vdc output (tar), vdd... more.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null
mountpoint -q /sys/kernel/security || mount -t securityfs securityfs /sys/kernel/security 2>/dev/null
for a in /dev/fd:/proc/self/fd /dev/stdin:/proc/self/fd/0 /dev/stdout:/proc/self/fd/1 /dev/stderr:/proc/self/fd/2; do ln -sfn "${a#*:}" "${a%%:*}"; done
ip link set lo up
run=() pre=
if grep -qw selinux=1 /proc/cmdline; then
	load_policy -i || echo "vm: load_policy failed with $?"
	restorecon -RF /dev /run /tmp /sys/fs/cgroup 2>/dev/null # made before the policy was there
	run=(runcon unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023)
	# kernel_t may not become unconfined_t when enforcing, so enforcing starts from inside.
	! grep -qw vmtest.enforcing=1 /proc/cmdline || pre='setenforce 1;'
fi
tar -xf /dev/vdb -C /in 2>/dev/null
stty -F /dev/ttyS1 raw -echo 2>/dev/null
cd /in || exit
# The pipe belongs to the script's own domain: programs that change domain keep their output.
# shellcheck disable=SC2016 # the inner shell's
"${run[@]}" /bin/bash -c "$pre"' set -o pipefail; /bin/bash /in/run.sh </dev/null 2>&1 | cat >/dev/ttyS1; exit ${PIPESTATUS[0]}' </dev/null
echo "$?" >/out/.status
tar -cf /dev/vdc -C /out . 2>/dev/null
sync
echo 1 >/proc/sys/kernel/sysrq
echo o >/proc/sysrq-trigger
sleep 10
