#!/usr/bin/env bash
# bench.sh: every way to give an image shifted owners, with a real podman, as a
# Markdown table. Each row has a new file system (ext4 with journal, on a loop
# device) and a new store. Everything is gone afterwards. Root only.
#
# Variables: ROUNDS (default 5; the table shows medians); IMAGE (default big);
# ROWS (a regular expression on the rows' names); SANDBOX_FS_TYPE; BENCH_DISK
# (the folder of the rows' disk images; default: memory, if there is enough,
# so that a busy disk does not decide, else the disk).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/sandbox.sh"
. "$(dirname "${BASH_SOURCE[0]}")/measure.sh"
: "${ROUNDS:=5}" "${IMAGE:=big}" "${ROWS:=.}" "${SANDBOX_FS_SIZE:=1G}"
: "${ROW_FS_SIZE:=10G}"
sandbox_enter "$@"
if [ -z "${BENCH_DISK:-}" ]; then
	BENCH_DISK=$SANDBOX
	# A full copy for each of five mappings of the big image takes 6 GB.
	[ "$(awk '$1 == "MemAvailable:" { print $2 }' /proc/meminfo)" -lt $((14 << 20)) ] || BENCH_DISK=/dev/shm
fi
MEASURE_LOG=$SANDBOX/measure.log
fs=$SANDBOX/row
table=$SANDBOX/table
base=100000 # host ID that the next fresh mapping starts with

# run_in NAME [podman run options...]
run_in() {
	local name=$1
	shift
	started podman run --name "$name" "$@" "localhost/$IMAGE" sh -c 'date +%s.%N'
}

# rounds LABEL: measure the store as it is configured, and add a row.
rounds() {
	local label=$1 i kb inodes plain=() fresh=() cached=() maps=()
	for ((i = 0; i <= ROUNDS; i++)); do
		run_in "plain$i"
		plain+=("$took")
	done
	plain=("${plain[@]:1}") # the first one warmed the page cache
	usage "$fs"
	kb=$used_kb inodes=$used_inodes
	for ((i = 0; i < ROUNDS; i++)); do
		maps+=("0:$base:65536")
		base=$((base + 65536))
		run_in "mapped$i" --uidmap "${maps[i]}" --gidmap "${maps[i]}"
		fresh+=("$took")
	done
	usage "$fs"
	kb=$(((used_kb - kb) / ROUNDS)) inodes=$(((used_inodes - inodes) / ROUNDS))
	for ((i = 0; i < ROUNDS; i++)); do
		podman rm -f -t 0 "mapped$i" >/dev/null
		run_in "again$i" --uidmap "${maps[i]}" --gidmap "${maps[i]}"
		cached+=("$took")
	done
	printf '| %s | %.3f | %.3f | %.3f | %s | %s |\n' "$label" "$(median "${plain[@]}")" \
		"$(median "${fresh[@]}")" "$(median "${cached[@]}")" "$(thousands "$kb")" "$(thousands "$inodes")" >>"$table"
	say "$label: measured"
}

# row LABEL DRIVER [MOUNTOPT [MOUNT_PROGRAM [ENGINE]]]: a new file system and
# store for one row; the file system goes when the row is done.
row() {
	local label=$1 driver=$2 mountopt=${3:-} program=${4:-} engine=${5:-}
	[[ $label =~ $ROWS ]] || return 0
	sandbox_disk "$BENCH_DISK/row.img" "$fs" "$ROW_FS_SIZE"
	sandbox_store "$fs/store" "$driver" "$mountopt"
	[ -z "$program" ] || printf '[storage.options.overlay]\nmount_program = "%s"\n' "$program" >>"$CONTAINERS_STORAGE_CONF"
	[ -z "$engine" ] || sandbox_engine "$engine"
	say "$label: importing $IMAGE"
	timed podman import -q "$BUILD/images/$IMAGE.tar" "localhost/$IMAGE"
	if [ -n "$engine" ] && [ "$(shift_engine)" != "$engine" ]; then
		printf '| %s | not available here: %s | | | | |\n' "$label" \
			"$(podman info --format '{{index .Store.GraphStatus "Shift engine reason"}}' 2>/dev/null)" >>"$table"
	else
		rounds "$label"
	fi
	podman rm -f -t 0 -a >/dev/null
	umount -R -l "$fs"
	rm -f "$BENCH_DISK/row.img"
}

# shellcheck disable=SC2016 # Markdown, not commands
rows() {
	local engine
	row 'overlay, idmapped mounts' overlay
	export _CONTAINERS_OVERLAY_DISABLE_IDMAP=yes
	row 'overlay, chown, default mount options' overlay
	row 'overlay, chown, `metacopy=on`' overlay nodev,metacopy=on
	unset _CONTAINERS_OVERLAY_DISABLE_IDMAP
	if ! command -v fuse-overlayfs >/dev/null; then
		echo '| fuse-overlayfs | not installed | | | | |' >>"$table"
	elif [ ! -c /dev/fuse ]; then
		echo '| fuse-overlayfs | no /dev/fuse here | | | | |' >>"$table"
	else
		row 'fuse-overlayfs as `mount_program`' overlay '' "$(command -v fuse-overlayfs)"
	fi
	for engine in idmap metacopy copyup; do
		row "**shiftoverlay**, engine \`$engine\`" shiftoverlay '' '' "$engine"
	done
}

version=$(podman --version)
rows
cat <<END

\`podman run\` until the container's command runs, seconds, medians of $ROUNDS. Image: $IMAGE.tar, $(thousands "$(tar -tf "$BUILD/images/$IMAGE.tar" | wc -l)") entries,
$(thousands "$(du -m "$BUILD/images/$IMAGE.tar" | cut -f1)") MB. A fresh mapping is a new \`--uidmap 0:BASE:65536\`; cached: the container is removed and one with the same
mapping is run. KB and inodes: per container with a fresh mapping, the container's own few files included.
$version, kernel $(uname -r), $SANDBOX_FS_TYPE on a loop device ($([ "$BENCH_DISK" = /dev/shm ] && echo in memory || echo on disk)), $(nproc) CPUs.

| | no user namespace | fresh mapping | cached mapping | KB | inodes |
|---|---:|---:|---:|---:|---:|
END
cat "$table"
