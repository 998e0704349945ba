#!/bin/bash
# Runs in the guest for make vm-matrix: what the driver says of this kernel, real
# container starts, root tests. Leaves its findings in /out. Input: plugin-test,
# test binaries and "list" (binary, arguments), busybox.tar, and podman and runc
# if there. Fails when the container of any working engine does not start.
set -u
mkdir -p /mnt /out/tests
mount -t ext4 /dev/vdd /mnt || exit 1
chmod 755 /mnt
export TMPDIR=/mnt/tmp PATH=/in:$PATH
mkdir -m 1777 $TMPDIR
uname -r | tee /out/release
rc=0

pt() {
	plugin-test --root /mnt/store "$@"
}

# What runs in the container: it has its own root user, and the image is that user's.
# shellcheck disable=SC2016
inside='[ "$(id -u):$(stat -c %u:%g /bin/busybox)" = 0:0:0 ] && echo x >/bin/new && cat /proc/self/uid_map'

# timed FILE COMMAND...: run; into FILE "ok SECONDS", or "failed: LAST LINE".
timed() {
	local file=$1 from to
	shift
	from=$(date +%s%N)
	if "$@" >/tmp/timed 2>&1; then
		to=$(date +%s%N)
		echo "ok $(((to - from) / 10000000))" | sed -E 's/([0-9]{2})$/.\1/; s/ \./ 0./' >"$file"
	else
		echo "failed: $(tail -n 1 /tmp/timed)" >"$file"
		rc=1
	fi
	echo "${file##*/}: $(cat "$file")"
}

pt --format json info >/out/info.json || exit 1
jq -r .GraphStatus /out/info.json
pt pull tar:/in/busybox.tar bb >/dev/null || exit 1
for e in idmap erofs metacopy copyup; do
	if pt --engine $e info >/tmp/info 2>&1; then
		timed /out/run-$e pt --engine $e run --uidmap 0:100000:65536 bb -- sh -c "$inside"
	else
		echo "no: $(sed -n 's/.*does not work here: //p' /tmp/info | sed 's/; set engine = .*//' | tail -n 1)" >/out/run-$e
		echo "run-$e: $(cat /out/run-$e)"
	fi
done
timed /out/run-auto pt run --userns auto bb -- sh -c "$inside"

if [ -x /in/podman ] && [ -x /in/runc ]; then
	mkdir -p /etc/containers /mnt/podman
	echo '{"default":[{"type":"insecureAcceptAnything"}]}' >/etc/containers/policy.json
	: >/etc/containers/registries.conf
	cat >/etc/containers/storage.conf <<-END
		[storage]
		driver = "shiftoverlay"
		graphroot = "/mnt/podman"
		runroot = "/run/podman-store"
	END
	cat >/etc/containers/containers.conf <<-END
		[containers]
		netns = "none"
		log_driver = "k8s-file"
		[engine]
		cgroup_manager = "cgroupfs"
		events_logger = "file"
		helper_binaries_dir = ["/in"]
		runtime = "runc"
		[engine.runtimes]
		runc = ["/in/runc"]
	END
	if podman import -q /in/busybox.tar localhost/bb >/tmp/import 2>&1; then
		timed /out/podman podman run --rm --userns=auto:size=65536 localhost/bb sh -c "$inside"
	else
		echo "failed: $(tail -n 1 /tmp/import)" >/out/podman
		rc=1
	fi
fi

while read -r bin args; do
	echo "== $bin $args"
	# Arguments are words without blanks.
	# shellcheck disable=SC2086
	"/in/$bin" -test.v=test2json -test.timeout 60m $args >"/out/tests/$bin.log" 2>&1 </dev/null || rc=1
	grep -aE '^.?--- FAIL|^panic' "/out/tests/$bin.log"
	rm -rf "${TMPDIR:?}"/*
done </in/list
umount /mnt/podman/shiftoverlay 2>/dev/null # podman keeps its store's folder mounted
awk '$2 ~ "^/mnt/"' /proc/mounts | grep . && { echo 'left mounted'; rc=1; }
exit $rc
