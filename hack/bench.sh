#!/usr/bin/env bash
# bench.sh: every way to give an image shifted owners, measured with a real
# podman in one run: start, removal, disk, memory, page cache, and work in the
# container. Writes tables (Markdown), all samples (JSON) and plots (SVG). Each
# image on each file system has a new file system on a loop device, with one new
# store for each driver. All of it is gone afterwards. Root only.
#
# Variables:
#   BENCH_ROUNDS   how often everything is measured (default 5; medians are shown)
#   BENCH_IMAGES   default "minbase big huge"
#   BENCH_FS       default "ext4 xfs"
#   BENCH_CONFIGS  configurations, default all: plain overlay-idmap overlay-chown
#                  overlay-chown-metacopy fuse-overlayfs vfs shift-idmap shift-erofs
#                  shift-erofs-5.10 shift-metacopy shift-copyup
#   BENCH_OUT      folder of the results, default docs/bench
#   BENCH_BUDGET   seconds (default 25): what took longer in all with the image
#                  huge is measured three times only; the tables show how often
#   BENCH_DISK     folder of the file system images; default: memory, if there is
#                  enough, so that a busy disk does not decide, else the disk
# A minute's try: BENCH_ROUNDS=1 BENCH_IMAGES=minbase BENCH_FS=ext4 make bench
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/sandbox.sh"
: "${BENCH_ROUNDS:=5}" "${BENCH_IMAGES:=minbase big huge}" "${BENCH_FS:=ext4 xfs}"
: "${BENCH_CONFIGS:=}" "${BENCH_OUT:=$REPO/docs/bench}" "${BENCH_BUDGET:=25}"
: "${SANDBOX_FS_SIZE:=1G}"
BENCH_FS_SIZE=40G # sparse
BENCH_MEMORY=$((20 << 20)) # KiB that have to be there for file systems in memory
images=$BUILD/bench
case ${BENCH_OUT} in /*) ;; *) BENCH_OUT=$PWD/$BENCH_OUT ;; esac
export BENCH_OUT

# prepare: what needs the network or may take long, outside of the sandbox.
prepare() {
	local image
	need go mkfs.ext4 mkfs.xfs fuse-overlayfs fstrim losetup
	# shellcheck disable=SC2086 # a list of names
	"$REPO/hack/images.sh" $BENCH_IMAGES
	say 'building benchplot'
	GOFLAGS='' CGO_ENABLED=0 go build -C "$REPO/tools/benchplot" -trimpath -o "$BUILD/benchplot" .
	for image in $BENCH_IMAGES; do
		local source=$BUILD/images/$image
		[ -d "$source" ] || source+=.tar
		[ "$images/$image" -nt "$source" ] || rm -rf "${images:?}/$image"
		"$BUILD/benchplot" image -data -out "$images/$image" "$source"
	done
	mkdir -p "$BENCH_OUT"
}

# disk_folder: choose where the file system images are, and name it.
disk_folder() {
	if [ -z "${BENCH_DISK:-}" ]; then
		BENCH_DISK=$SANDBOX/images
		mkdir -p "$BENCH_DISK"
		[ "$(awk '$1 == "MemAvailable:" { print $2 }' /proc/meminfo)" -lt $BENCH_MEMORY ] ||
			mount -t tmpfs -o size=90%,mode=755 bench-memory "$BENCH_DISK"
	fi
	case $(stat -f -c %T "$BENCH_DISK") in
	tmpfs) disk='on a loop device in memory' ;;
	*) disk='on a loop device on disk' ;;
	esac
}

# measure FS IMAGE
measure() {
	local fs=$1 image=$2 dir=$SANDBOX/measured img=$BENCH_DISK/measured.img
	sandbox_disk "$img" "$dir" "$BENCH_FS_SIZE" "$fs"
	# Else what is read would be in the page cache twice.
	losetup --direct-io=on "$(findmnt -no SOURCE "$dir")" 2>/dev/null || true
	mkdir -p "$dir/tmp"
	TMPDIR=$dir/tmp "$BUILD/benchplot" measure -json "$SANDBOX/results.json" -fs "$fs" -dir "$dir" -disk "$disk" \
		-image "$image" -layout "$images/$image" -configs "$BENCH_CONFIGS" -rounds "$BENCH_ROUNDS" -budget "$BENCH_BUDGET"
	umount -R "$dir" || umount -R -l "$dir"
	rm -f "$img"
}

[ -n "${SANDBOX_INSIDE:-}" ] || prepare
sandbox_enter "$@"
disk_folder
for fs in $BENCH_FS; do
	for image in $BENCH_IMAGES; do
		measure "$fs" "$image"
	done
done
install -m 644 "$SANDBOX/results.json" "$BENCH_OUT/results.json"
"$BUILD/benchplot" report -json "$BENCH_OUT/results.json" -out "$BENCH_OUT"
say "results: $BENCH_OUT/README.md"
