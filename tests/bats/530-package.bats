#!/usr/bin/env bats
# The Debian package beside the distribution's podman, in a copy of this machine's
# system: install, two lines in storage.conf, run; remove, and all goes on.

load helpers

setup() {
	basic_setup
	ROOT=$WORK/root
	mkdir -p "$ROOT" "$WORK/upper" "$WORK/work" "$WORK/containers"
	mount -t overlay overlay -o "lowerdir=/,upperdir=$WORK/upper,workdir=$WORK/work" "$ROOT"
	mount -t proc proc "$ROOT/proc"
	# Slaves: what is unmounted there stays mounted here.
	mount --rbind --make-rslave /sys "$ROOT/sys"
	mount --rbind --make-rslave /dev "$ROOT/dev"
	mount -t tmpfs -o mode=755 test-run "$ROOT/run"
	mkdir -p "$ROOT/var/lib/containers" "$ROOT/etc/containers" "$ROOT/var/tmp" "$ROOT/packages"
	mount --bind "$WORK/containers" "$ROOT/var/lib/containers"
	cp "$BUILD/stock/podman" "$ROOT/usr/bin/podman"
	cp "$BUILD/runc" "$ROOT/usr/bin/runc"
	cp "$BUILD/packages/"*.deb "$BUILD/images/busybox.tar" "$ROOT/packages/"
	cp /etc/containers/policy.json /etc/containers/registries.conf "$ROOT/etc/containers/"
	sandbox_containers_conf | sed -e '/runc = /d' -e '/engine.runtimes/d' >"$ROOT/etc/containers/containers.conf"
	printf 'containers:2147483647:2147483648\n' | tee "$ROOT/etc/subuid" >"$ROOT/etc/subgid"
	settings ''
}

teardown() {
	inside 'podman rm -f -t 0 -a; podman rmi -f -a; umount -R -l /var/lib/containers/storage/overlay 2>/dev/null' || true
	umount -R -l "$ROOT"
	basic_teardown
}

# inside SCRIPT: run it in the copy; sets status and output.
inside() {
	printf '$ %s\n' "$1"
	status=0
	# shellcheck disable=SC2016
	output=$(env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C PODMAN_IGNORE_CGROUPSV1_WARNING=1 \
		DEBIAN_FRONTEND=noninteractive ${NOIDMAP:+_CONTAINERS_OVERLAY_DISABLE_IDMAP=yes} \
		timeout --kill-after=10 "$COMMAND_TIMEOUT" unshare --mount --propagation private sh -c \
		'cd "$0" && mkdir -p old && pivot_root . old && umount -l /old && exec /bin/sh -c "$1"' "$ROOT" "$1" 2>&1 3>&-) || status=$?
	printf '%s\n' "$output"
	return "$status"
}

# settings LINES: storage.conf of the copy, and these lines.
settings() {
	printf '[storage]\ndriver = "overlay"\ngraphroot = "/var/lib/containers/storage"\nrunroot = "/run/containers/storage"\n%s\n' "$1" >"$ROOT/etc/containers/storage.conf"
}

PROGRAM_LINES='[storage.options.overlay]
mount_program = "/usr/bin/shiftoverlay-mount"'

# ours: files in the copy's /usr and /var that the machine has not, but for what
# Debian's own programs write.
ours() {
	(cd "$WORK/upper" && find usr etc var run lib -name '*shiftoverlay*' 2>/dev/null | sort)
}

@test "the Debian package: install, use, remove" {
	inside 'podman import -q /packages/busybox.tar localhost/bb && podman run --name before localhost/bb sh -c "echo hi >/new; rm -f /srv/shift/empty"'
	is "$(ours)" '' "files before"
	inside 'dpkg -i /packages/*.deb'
	inside 'shiftoverlay --version && shiftoverlay-mount --version && man -w shiftoverlay-mount 2>/dev/null || ls /usr/share/man/man1/shiftoverlay-mount.1'
	assert "$(ours)" =~ usr/bin/shiftoverlay-mount "installed files"
	settings "$PROGRAM_LINES"
	local NOIDMAP
	for NOIDMAP in '' yes; do
		inside 'podman run --rm --userns=auto:size=65536 localhost/bb sh -c "stat -c %u:%g /etc/passwd /srv/shift/user1000; cat /proc/self/uid_map"'
		assert "$output" =~ ^$'0:0\n1000:1000\n *0 +2147' "a container in a user namespace${NOIDMAP:+, without idmapped mounts}"
	done
	[ -n "$(find "$WORK/containers/storage/overlay-shifted" -name image.erofs)" ] || die "no shifted lower in the cache"
	NOIDMAP=''
	inside 'podman start before >/dev/null && podman wait before && podman diff before'
	assert "$output" =~ 'D /srv/shift/empty' "the container of before"
	inside 'podman run --name between --userns=auto:size=65536 localhost/bb sh -c "echo hi >/new; rm -f /srv/shift/secret/file"; podman commit -q between localhost/between'
	inside 'podman run --rm localhost/between stat -c %u:%g /new'
	is "$output" 0:0 "owner in a new image"
	inside 'podman commit -q between localhost/never'
	inside 'dpkg -r shiftoverlay'
	assert "$output" =~ "layers in /var/lib/containers/storage/overlay have the kernel's whiteouts" "what removing says"
	settings ''
	is "$(ours | grep -v '^var/lib/dpkg\|^var/log')" '' "files left behind"
	[ ! -e "$WORK/containers/storage/overlay-shifted" ] || die "the cache is still there"
	inside 'podman start before >/dev/null && podman wait before'
	is "$output" 0 "the container of before"
	inside 'podman start between >/dev/null && podman wait between && podman run --rm localhost/never sh -c "cat /new; ls /srv/shift/secret"'
	is "$output" $'0\nhi' "container and image of the time between"
	is "$(inside 'podman info --format "{{.Store.GraphOptions}}"' | tail -n 1)" 'map[]' "options of the store"
}
