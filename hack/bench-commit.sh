#!/usr/bin/env bash
# bench-commit.sh: what it costs to write back one changed file of a large
# image, with a real podman, as a Markdown table: podman diff and commit of a
# container, and a build with ten small RUN steps. Each row has a new file
# system (ext4 with journal, on a loop device) and a new store. Everything is
# gone afterwards. Root only.
#
# Variables: ROUNDS (default 5; the table shows medians), BUILD_ROUNDS (default
# 1), IMAGE (default big), ROWS (a regular expression on the rows' names).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/sandbox.sh"
. "$(dirname "${BASH_SOURCE[0]}")/measure.sh"
: "${ROUNDS:=5}" "${BUILD_ROUNDS:=1}" "${IMAGE:=big}" "${ROWS:=.}" "${SANDBOX_FS_SIZE:=1G}" "${ROW_FS_SIZE:=8G}"
sandbox_enter "$@"
MEASURE_LOG=$SANDBOX/measure.log
fs=$SANDBOX/row
table=$SANDBOX/table
map=0:1000000:65536

# ten_steps: a build context whose Containerfile has ten small RUN steps.
ten_steps() {
	mkdir -p "$SANDBOX/context"
	{
		echo "FROM localhost/$IMAGE"
		for i in 1 2 3 4 5 6 7 8 9 10; do echo "RUN echo $i >/step$i"; done
	} >"$SANDBOX/context/Containerfile"
}

# row LABEL DRIVER MOUNTOPT [podman run options...]
row() {
	local label=$1 driver=$2 mountopt=$3 i commits=() diffs=() builds=()
	shift 3
	[[ $label =~ $ROWS ]] || return 0
	sandbox_disk "$SANDBOX/row.img" "$fs" "$ROW_FS_SIZE"
	sandbox_store "$fs/store" "$driver" "$mountopt"
	timed podman import -q "$BUILD/images/$IMAGE.tar" "localhost/$IMAGE"
	timed podman run --name changed "$@" "localhost/$IMAGE" sh -c 'echo changed >/etc/motd'
	for ((i = 0; i < ROUNDS; i++)); do
		timed podman diff changed
		diffs+=("$took")
		timed podman commit -q changed "localhost/commit$i"
		commits+=("$took")
	done
	for ((i = 0; i < BUILD_ROUNDS; i++)); do
		timed podman build -q --no-cache --pull=never --layers -t "localhost/built$i" "$SANDBOX/context"
		builds+=("$took")
	done
	printf '| %s | %.3f | %.3f | %.2f |\n' "$label" "$(median "${diffs[@]}")" "$(median "${commits[@]}")" "$(median "${builds[@]}")" >>"$table"
	say "$label: measured"
	podman rm -f -t 0 -a >/dev/null
	umount -R -l "$fs"
	rm -f "$SANDBOX/row.img"
}

# driver_diff: set `diff_ms` to what the driver's Diff takes by itself, without
# podman, in milliseconds.
driver_diff() {
	sandbox_disk "$SANDBOX/row.img" "$fs" "$ROW_FS_SIZE"
	# Not the settings of the last row's store, which is gone.
	local host=(env -u SHIFTOVERLAY_CONF -u CONTAINERS_STORAGE_CONF "$BUILD/plugin-test" --root "$fs/graph" --runroot "$fs/run")
	local mounted times=() i
	timed "${host[@]}" pull "tar:$BUILD/images/$IMAGE.tar" bench
	timed "${host[@]}" mount --uidmap "$map" bench
	read -r mounted id <"$MEASURE_LOG"
	echo changed >"$mounted/etc/motd"
	chown "${map:2:7}:${map:2:7}" "$mounted/etc/motd"
	timed "${host[@]}" umount "$id"
	for ((i = 0; i < ROUNDS; i++)); do
		timed "${host[@]}" diff "$id"
		times+=("$(sed -n 's/^seconds: //p' "$MEASURE_LOG")")
	done
	diff_ms=$(awk -v s="$(median "${times[@]}")" 'BEGIN { printf "%.1f", s * 1000 }')
	umount -R -l "$fs"
	rm -f "$SANDBOX/row.img"
}

version=$(podman --version)
ten_steps
# shellcheck disable=SC2016 # Markdown, not commands
{
	row 'overlay, `metacopy=on`' overlay nodev,metacopy=on
	row 'overlay, no metacopy' overlay nodev
	row '**shiftoverlay** (`metacopy=on`), no mapping' shiftoverlay nodev
	row '**shiftoverlay** (`metacopy=on`), mapped container' shiftoverlay nodev --uidmap "$map" --gidmap "$map"
}
driver_diff
cat <<END

One changed file in $IMAGE.tar, $(thousands "$(tar -tf "$BUILD/images/$IMAGE.tar" | wc -l)") entries. Seconds, medians of $ROUNDS (build: $BUILD_ROUNDS).
$version, kernel $(uname -r), ext4 on a loop device, $(nproc) CPUs. The driver's Diff alone: $diff_ms ms.

| | podman diff | podman commit | podman build, 10 RUN steps |
|---|---:|---:|---:|
END
cat "$table"
