#!/usr/bin/env bats
# Graph roots on other file systems than the sandbox's own (ext4).

load helpers

AUTO=--userns=auto:size=65536

# on_disk TYPE: the store's graph root moves to a new file system of that type.
on_disk() {
	DISK=$WORK/disk
	mkdir "$DISK"
	case $1 in
	tmpfs) mount -t tmpfs -o mode=755 graph "$DISK" ;;
	*)
		command -v "mkfs.$1" >/dev/null || skip "mkfs.$1 is not installed"
		sandbox_disk "$WORK/disk.img" "$DISK" 400M "$1"
		;;
	esac
	mkdir "$DISK/graph"
	sed -i "s|^graphroot = .*|graphroot = \"$DISK/graph\"|" "$CONTAINERS_STORAGE_CONF"
	GRAPH=$DISK/graph
}

# off_disk: clean up there, and back to where teardown looks.
off_disk() {
	sandbox_engine auto
	clean_store
	is "$(leftovers "$GRAPH" "$EMPTY_STORE" shiftoverlay)" '' "files left behind in the graph root"
	mounts | { grep "^$DISK/" || true; } | sort -r | while read -r m; do umount "$m"; done
	umount "$DISK"
	rm -f "$WORK/disk.img"
	use_store s shiftoverlay
	rm -rf "$RUN"
	forget_boot
}

check_disk() {
	on_disk "$1"
	import
	local plain engine
	listing "$IMAGE"
	plain=$TREE
	layer_of "$IMAGE"
	setfacl -m u:1000:r,g:33:rw "$UPPER/srv/shift/link1"
	# What works here, auto first; copyup always does.
	for engine in auto idmap erofs metacopy copyup; do
		sandbox_engine "$engine"
		capture podman info --format '{{index .Store.GraphStatus "Shift engine"}}'
		if [ "$status" -ne 0 ]; then
			assert "$output" =~ 'shift engine does not work here' "$1, engine $engine: the reason"
			assert "$engine" =~ '^(idmap|erofs|metacopy)$' "$1: an engine that always works"
			echo "$1, engine $engine: $output"
			continue
		fi
		listing "$AUTO" "$IMAGE"
		same_text "$(sed 's/^\(\/srv\/shift\/link[123] regular file 6\)44/\164/' <<<"$plain")" "$TREE" "$1, engine $engine: tree under a mapping"
		run_podman run --name "$engine" --uidmap 0:100000:65536 --gidmap 0:200000:65536 "$IMAGE" sh -c 'echo new >/new; chown 33:34 /new; rm /srv/shift/empty'
		run_podman mount "$engine"
		is "$(getfacl -ncE --absolute-names "$output/srv/shift/link1" | grep -E '^(user|group):[0-9]')" \
			$'user:101000:r--\ngroup:200033:rw-' "$1, engine $engine: ACL"
		run_podman unmount "$engine"
		run_podman commit -q "$engine" "localhost/$engine"
		run_podman run --rm "localhost/$engine" sh -c 'stat -c %u:%g /new /srv/shift/user1000; test -e /srv/shift/empty || echo gone'
		is "$output" $'33:34\n1000:1000\ngone' "$1, engine $engine: the new image"
	done
	off_disk
}

@test "xfs" {
	check_disk xfs
}

@test "btrfs" {
	check_disk btrfs
}

@test "overlay: fuse-overlayfs mounts, as with plain overlay" {
	DISK=$WORK/disk
	mkdir "$DISK" "$WORK/upper" "$WORK/work" "$WORK/lower"
	mount -t overlay overlay -o "lowerdir=$WORK/lower,upperdir=$WORK/upper,workdir=$WORK/work" "$DISK"
	mkdir "$DISK/graph"
	sed -i "s|^graphroot = .*|graphroot = \"$DISK/graph\"|" "$CONTAINERS_STORAGE_CONF"
	GRAPH=$DISK/graph
	run_podman info --format '{{index .Store.GraphStatus "Shift engine"}}'
	is "$output" mount_program "engine"
	import
	run_podman run --rm "$AUTO" "$IMAGE" stat -c %u:%g /srv/shift/user1000
	is "$output" 1000:1000 "owner under a mapping"
	off_disk
}

@test "tmpfs" {
	check_disk tmpfs
}

@test "ext4 without room for attributes in the inode" {
	DISK=$WORK/disk
	truncate -s 200M "$WORK/disk.img"
	mkfs.ext4 -q -I 128 "$WORK/disk.img" 2>/dev/null
	mkdir "$DISK"
	mount -o loop "$WORK/disk.img" "$DISK"
	chmod 755 "$DISK"
	mkdir "$DISK/graph"
	sed -i "s|^graphroot = .*|graphroot = \"$DISK/graph\"|" "$CONTAINERS_STORAGE_CONF"
	GRAPH=$DISK/graph
	import
	local engine
	for engine in auto idmap erofs metacopy copyup; do
		sandbox_engine "$engine"
		run_podman run --rm "$AUTO" "$IMAGE" sh -c 'stat -c %u:%g /srv/shift/user1000; su user -c whoami-cap'
		is "$output" $'1000:1000\nuid=1000 euid=1000 gid=1000 egid=1000 capeff=0000000000000400' "engine $engine"
	done
	off_disk
}
