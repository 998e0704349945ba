#!/usr/bin/env bats
# Removing an image, or everything, leaves no file, mount or inode behind.

load helpers

AUTO=--userns=auto:size=65536

# use_disk: the store moves to a file system of its own, whose inodes nobody else
# uses. Sets DISK.
use_disk() {
	DISK=$WORK/disk
	if [ -n "${SANDBOX_ROOTLESS:-}" ]; then
		DISK=$SANDBOX/user-disk # which rootless.sh has made
	else
		sandbox_disk "$WORK/disk.img" "$DISK" 200M
	fi
	mkdir "$DISK/graph"
	sed -i "s|^graphroot = .*|graphroot = \"$DISK/graph\"|" "$CONTAINERS_STORAGE_CONF"
	GRAPH=$DISK/graph
}

# leave_disk: back to where teardown looks.
leave_disk() {
	local m
	mounts | { grep "^$DISK/" || true; } | sort -r | while read -r m; do umount "$m"; done
	if [ -n "${SANDBOX_ROOTLESS:-}" ]; then
		find "$DISK" -mindepth 1 -delete
	else
		umount "$DISK"
		rm "$WORK/disk.img"
	fi
	use_store s shiftoverlay
	rm -rf "$RUN"
	forget_boot
}

inodes() { df --output=iused "$DISK" | tail -n 1 | tr -d ' '; }

# inodes_fall_to N: what podman removes in the background, and files that it still
# has open then, go within seconds.
inodes_fall_to() {
	local i
	for ((i = 0; i < 100; i++)); do
		[ "$(inodes)" -gt "$1" ] || return 0
		sleep 0.1
	done
}

# work ENGINE: containers, volumes and images of all kinds.
work() {
	sandbox_engine "$1"
	run_podman run --name "plain-$1" "$IMAGE" touch /new
	run_podman run --name "auto-$1" "$AUTO" -v "vol-$1:/vol" "$IMAGE" sh -c 'echo hi >/vol/new; echo hi >/new; rm -rf /srv/shift'
	run_podman commit -q "auto-$1" "localhost/image-$1"
	run_podman run -d --name "run-$1" --uidmap 0:100000:65536 --gidmap 0:200000:65536 "localhost/image-$1" sleep 1000
	run_podman mount "run-$1"
}

@test "rm and rmi leave no inode" {
	use_disk
	run_podman images -q
	import
	run_podman rmi "$IMAGE"
	local before engine
	before=$(inodes)
	for engine in $ENGINES; do
		import
		work "$engine"
		assert "$(inodes)" -gt $((before + 300)) "engine $engine: inodes in use"
		run_podman unmount "run-$engine"
		run_podman rm -f -t 0 -a
		run_podman volume rm -a -f
		run_podman rmi -a
		# What is made once: lock files and folders of the cache, tables of the store.
		inodes_fall_to $((before + 12))
		assert "$(inodes)" -le $((before + 12)) "engine $engine: inodes in use after removal"
		is "$(leftovers "$GRAPH" "$EMPTY_STORE" shiftoverlay)" '' "engine $engine: files"
		is "$(mounts | grep "^$DISK/.*merged" || true)" '' "engine $engine: mounts"
	done
	before=$(inodes)
	for engine in $ENGINES; do
		import
		work "$engine"
		run_podman unmount "run-$engine"
		run_podman rm -f -t 0 -a
		run_podman volume rm -a -f
		run_podman rmi -a
		inodes_fall_to "$before"
		is "$(inodes)" "$before" "engine $engine: inodes in use after the second time"
	done
	leave_disk
}

@test "rmi of one image leaves the other's shifted lowers" {
	import
	run_podman run --name con "$IMAGE" touch /new
	run_podman commit -q con localhost/two
	run_podman rm con
	sandbox_engine metacopy
	local name
	for name in "$IMAGE" localhost/two; do
		run_podman run --rm --uidmap 0:100000:65536 --gidmap 0:200000:65536 "$name" true
	done
	status_row 'Shift cache entries'
	is "$output" 2 "entries"
	run_podman rmi localhost/two
	status_row 'Shift cache entries'
	is "$output" 1 "entries after rmi"
	run_podman run --rm --uidmap 0:100000:65536 --gidmap 0:200000:65536 "$IMAGE" true
	status_row 'Shift cache entries'
	is "$output" 1 "entries after another container"
}

@test "a container keeps its shifted lower, whatever the limits of the cache say" {
	import
	sandbox_engine metacopy 'cache_max_size = "1k"' 'cache_max_age = "1ns"'
	run_podman run -d --name con "$AUTO" "$IMAGE" sleep 1000
	run_podman run --name stopped "$AUTO" "$IMAGE" true
	run_podman run --rm "$AUTO" "$IMAGE" true
	run_podman exec con stat -c %u:%g /etc/passwd
	is "$output" 0:0 "owner in the running container"
	run_podman start -a stopped
	run_podman stop -t 0 con
	run_podman start con
	run_podman exec con stat -c %u:%g /etc/passwd
	is "$output" 0:0 "owner after a restart"
}

@test "system reset leaves no file, mount or inode" {
	case $WORK in
	"$SANDBOX"/?*) ;;
	*) die "podman system reset is for the sandbox only, not for $WORK" ;;
	esac
	use_disk
	local before engine
	before=$(inodes)
	for engine in $ENGINES; do
		import
		work "$engine"
		run_podman unmount "run-$engine"
	done
	assert "$(inodes)" -gt $((before + 1500)) "inodes in use"
	# Three files name all places that podman uses here; all are this test's.
	is "$CONTAINERS_STORAGE_CONF $CONTAINERS_CONF" "$WORK/s/storage.conf $WORK/s/containers.conf" "configuration"
	run_podman stop -t 0 -a
	run_podman system reset --force
	# podman opens an empty store at its end, with overlay, too.
	is "$(leftovers "$GRAPH" "$EMPTY_STORE" shiftoverlay)" '' "files in the graph root"
	is "$(leftovers "$RUN" "$EMPTY_RUN" shiftoverlay)" '' "files in the run root"
	[ ! -e "$GRAPH/shiftoverlay-shifted" ] || die "the cache is still there"
	is "$(mounts | grep "^$DISK/" || true)" '' "mounts"
	inodes_fall_to $((before + 8))
	assert "$(inodes)" -le $((before + 8)) "inodes in use"
	# And all starts anew.
	run_podman images -q
	is "$output" '' "images"
	leave_disk
}
