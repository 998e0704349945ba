#!/usr/bin/env bash
# demo.sh: a real podman starts containers of a real image in user namespaces
# of their own, on plain overlay and on shiftoverlay, side by side. Everything
# happens in a sandbox and is gone afterwards. Root only.
#
# Variables: ROUNDS (default 3; the table shows medians); IMAGES (default "minbase big").
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/sandbox.sh"
. "$(dirname "${BASH_SOURCE[0]}")/measure.sh"
: "${ROUNDS:=3}" "${IMAGES:=minbase big}" "${SANDBOX_FS_SIZE:=16G}"
sandbox_enter "$@"
MEASURE_LOG=$SANDBOX/measure.log
USERNS=auto:size=65536
INSIDE='cat /proc/self/uid_map; ls -ln /etc/passwd'
rows=$SANDBOX/rows

# store DRIVER [MOUNTOPT]: use the demo's store of that driver.
store() {
	sandbox_store "$SANDBOX_FS/$1" "$1" "${2:-}"
}

# run_in USERNS [podman run options...]: the demo's container, timed.
run_in() {
	local ns=$1
	shift
	started podman run --userns="$ns" "$@" "localhost/$image" sh -c "date +%s.%N; $INSIDE"
}

# measure LABEL: a row of the table, with the store and the environment as they are.
measure() {
	local label=$1 i kb inodes plain=() fresh=() cached=()
	for ((i = 0; i <= ROUNDS; i++)); do
		run_in host --name "plain$i"
		plain+=("$took")
	done
	plain=("${plain[@]:1}") # the first one warmed the page cache
	# As long as these containers exist, each new one gets a range of its own.
	usage "$SANDBOX_FS"
	kb=$used_kb inodes=$used_inodes
	for ((i = 0; i < ROUNDS; i++)); do
		run_in "$USERNS" --name "fresh$i"
		fresh+=("$took")
	done
	usage "$SANDBOX_FS"
	kb=$(((used_kb - kb) / ROUNDS)) inodes=$(((used_inodes - inodes) / ROUNDS))
	# A range whose container is removed is the next one's again.
	for ((i = 0; i < ROUNDS; i++)); do
		podman rm -f -t 0 "fresh$i" >/dev/null
		run_in "$USERNS" --name "cached$i"
		cached+=("$took")
	done
	podman rm -f -t 0 -a >/dev/null
	printf '%s|%s|%.3f s|%.3f s|%.3f s|%s KB|%s\n' "$image" "$label" "$(median "${plain[@]}")" \
		"$(median "${fresh[@]}")" "$(median "${cached[@]}")" "$(thousands "$kb")" "$(thousands "$inodes")" >>"$rows"
	say "$image: $label: measured"
}

echo
echo 'storage.conf:'
store shiftoverlay
sed 's/^/    /' "$CONTAINERS_STORAGE_CONF"

for image in $IMAGES; do
	for driver in overlay shiftoverlay; do
		store "$driver"
		timed podman import -q "$BUILD/images/$image.tar" "localhost/$image"
		say "imported $image into the $driver store in $took s"
	done
done

image=${IMAGES%% *}
echo
echo "\$ podman run --rm --userns=$USERNS localhost/$image sh -c '$INSIDE'"
run_in "$USERNS" --rm
sed -e 1d -e 's/^/    /' "$MEASURE_LOG"

for image in $IMAGES; do
	unset _CONTAINERS_OVERLAY_DISABLE_IDMAP
	store overlay
	measure 'overlay, idmapped mounts'
	store shiftoverlay
	measure "shiftoverlay, engine $(shift_engine)"
	# What a kernel or a file system without idmapped mounts would see. Overlay
	# gets the mount option that spares it from copying all data.
	export _CONTAINERS_OVERLAY_DISABLE_IDMAP=yes
	store overlay nodev,metacopy=on
	measure 'overlay, no idmapped mounts: chown'
	store shiftoverlay
	measure "shiftoverlay, no idmapped mounts: engine $(shift_engine)"
done

echo
echo "podman run --userns=$USERNS: time until the container's command runs, medians of $ROUNDS;"
echo 'disk and inodes: per container with a fresh mapping'
echo "($(podman --version), kernel $(uname -r), $SANDBOX_FS_TYPE on a loop device, $(nproc) CPUs)"
for image in $IMAGES; do
	printf '\n%s, %s files and folders\n' "$image" "$(thousands "$(tar -tf "$BUILD/images/$image.tar" | wc -l)")"
	printf '  %-52s %10s %14s %15s %12s %9s\n' '' 'no userns' 'fresh mapping' 'cached mapping' 'disk' 'inodes'
	while IFS='|' read -r of label plain fresh cached kb inodes; do
		[ "$of" = "$image" ] || continue
		printf '  %-52s %10s %14s %15s %12s %9s\n' "$label" "$plain" "$fresh" "$cached" "$kb" "$inodes"
	done <"$rows"
done
echo
