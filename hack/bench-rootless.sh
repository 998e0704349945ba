#!/usr/bin/env bash
# bench-rootless.sh: what a mapping costs an ordinary user, with a real podman in
# one run: plain overlay, which copies the image, and each engine that works for
# him. A table (Markdown) goes to standard output and to $BENCH_OUT/rootless.md.
# Everything else happens in a sandbox (rootless.sh) and is gone afterwards.
#
# Variables: BENCH_ROUNDS (default 3: fresh mappings after the first; overlay gets
# one), BENCH_IMAGE (default big), BENCH_OUT (default docs/bench), and those of
# sandbox.sh.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/sandbox.sh"
. "$(dirname "${BASH_SOURCE[0]}")/measure.sh"
: "${BENCH_ROUNDS:=3}" "${BENCH_IMAGE:=big}" "${BENCH_OUT:=$REPO/docs/bench}"

if [ -z "${SANDBOX_ROOTLESS:-}" ]; then
	need filefrag
	"$REPO/hack/images.sh" "$BENCH_IMAGE"
	out=$("$REPO/hack/rootless.sh" env BENCH_ROUNDS="$BENCH_ROUNDS" BENCH_IMAGE="$BENCH_IMAGE" SANDBOX_FS_TYPE="$SANDBOX_FS_TYPE" hack/bench-rootless.sh)
	mkdir -p "$BENCH_OUT"
	printf '%s\n' "$out" | tee "$BENCH_OUT/rootless.md"
	exit
fi

version=$(podman --version)
MEASURE_LOG=$SANDBOX_FS/measure.log
IMAGE=localhost/$BENCH_IMAGE

# start NUMBER: a container with the mapping of that number, timed until its
# command runs. Number 0 is keep-id.
start() {
	local map=(--userns=keep-id)
	[ "$1" = 0 ] || map=(--uidmap "0:$((200000 + $1)):65536" --gidmap "0:$((200000 + $1)):65536")
	started podman run --rm "${map[@]}" "$IMAGE" date +%s.%N
}

# fresh NUMBER: the same for the first time, with disk and inodes.
fresh() {
	local kb inodes
	usage "$SANDBOX_FS"
	kb=$used_kb inodes=$used_inodes
	start "$1"
	usage "$SANDBOX_FS"
	kb=$((used_kb - kb)) inodes=$((used_inodes - inodes))
	fresh_kb=$kb fresh_inodes=$inodes
}

# with_data: how many regular files of the shifted lowers have blocks of data, of how many.
with_data() {
	local dir
	dir=$(dirname "$CONTAINERS_STORAGE_CONF")/graph
	# shellcheck disable=SC2016
	podman unshare sh -c 'find "$0"/shiftoverlay-shifted -path "*/data/tree/*" -type f -size +0 -exec filefrag {} + |
		awk "/ extents? found\$/ { n++ } !/: 0 extents found\$/ { d++ } END { print d + 0 \" of \" n + 0 }"' "$dir"
}

# measure LABEL DRIVER ENGINE ROUNDS: a row of the table.
measure() {
	local label=$1 driver=$2 engine=$3 rounds=$4 i first kb inodes later=() later_kb=() cached=() data=-
	sandbox_store "$SANDBOX_FS/$driver-$engine" "$driver"
	sandbox_engine "$engine"
	timed podman import -q "$BUILD/images/$BENCH_IMAGE.tar" "$IMAGE"
	say "$label: imported in $took s"
	start_plain
	fresh 0
	first=$took kb=$fresh_kb inodes=$fresh_inodes
	for ((i = 1; i <= rounds; i++)); do
		fresh "$i"
		later+=("$took") later_kb+=("$fresh_kb")
	done
	for ((i = 0; i < 3; i++)); do
		start 0
		cached+=("$took")
	done
	[ "$driver" = overlay ] || data=$(with_data)
	printf '| %s | %s | %s | %s | %s | %s | %s | %s |\n' "$label" "$first" "$(median "${later[@]}")" "$(median "${cached[@]}")" \
		"$(thousands "$kb")" "$(thousands "$(median "${later_kb[@]}")")" "$(thousands "$inodes")" "$data" >>"$SANDBOX_FS/rows"
	say "$label: first $first s, $kb KB"
	timed podman unshare sh -c "umount -l '$SANDBOX_FS/$driver-$engine'/graph/* 2>/dev/null; rm -rf '$SANDBOX_FS/$driver-$engine'"
	rm -rf "$XDG_RUNTIME_DIR"/libpod/tmp
}

# start_plain: one without a mapping of its own warms the page cache.
start_plain() { started podman run --rm "$IMAGE" date +%s.%N; }

# shellcheck disable=SC2016 # Markdown
measure '**shiftoverlay** `metacopy`' shiftoverlay metacopy "$BENCH_ROUNDS"
# shellcheck disable=SC2016
measure '**shiftoverlay** `copyup`' shiftoverlay copyup 1
measure 'overlay' overlay auto 1

cat <<END
# Rootless: what a mapping costs

\`make bench-rootless\`, image \`$BENCH_IMAGE\` ($(thousands "$(tar -tf "$BUILD/images/$BENCH_IMAGE.tar" | wc -l)") files and folders,
$(thousands $(($(stat -c %s "$BUILD/images/$BENCH_IMAGE.tar") / 1000000))) MB), $version, kernel $(uname -r), $SANDBOX_FS_TYPE with journal on a loop device, $(nproc) CPUs
(load at the end: $(cut -d' ' -f1-3 /proc/loadavg)). Seconds until the container's command runs; disk and inodes of a mapping that is used for the first time:
\`--userns=keep-id\` is the first one of the image, \`--uidmap\` makes the next (shiftoverlay \`metacopy\`: $BENCH_ROUNDS, medians; the others: one).

| | first start, \`keep-id\` | fresh mapping | cached mapping | KB, first | KB, next | inodes | files with blocks of data |
|---|---:|---:|---:|---:|---:|---:|---:|
$(cat "$SANDBOX_FS/rows")
END
