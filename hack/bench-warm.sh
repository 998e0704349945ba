#!/usr/bin/env bash
# bench-warm.sh: what `shiftoverlay warm` costs those who work beside it, with a
# real podman, as a Markdown table: podman ps, images and run of another image
# while mappings of a large image are warmed, over and over, and while that is
# stopped (SIGSTOP), in turns, so that what else happens on the machine falls on
# both; and how many of COUNT containers find what was warmed for them. Engines that
# make something for each mapping, so without idmapped mounts. Each engine has a new
# file system (ext4 with journal, on a loop device in memory) and a new store.
# Everything is gone afterwards. Root only.
#
# Variables: PAIRS of samples of each command (default 25; the table shows medians),
# COUNT of mappings (default 20), IMAGE (default big), ENGINES (default "metacopy
# erofs"), BAR (default 1.2: the exit status is 1 if a ratio is above; 0 for none).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/sandbox.sh"
. "$(dirname "${BASH_SOURCE[0]}")/measure.sh"
: "${PAIRS:=25}" "${COUNT:=20}" "${IMAGE:=big}" "${ENGINES:=metacopy erofs}" "${BAR:=1.2}"
: "${SANDBOX_FS_SIZE:=1G}" "${ROW_FS_SIZE:=16G}"
sandbox_enter "$@"
MEASURE_LOG=$SANDBOX/measure.log
AUTO=--userns=auto:size=65536
commands=(ps images run)
export _CONTAINERS_OVERLAY_DISABLE_IDMAP=yes

# sample COMMAND: set `took` to what one call takes.
sample() {
	case $1 in
	ps) timed podman ps -a ;;
	images) timed podman images ;;
	run) started podman run --rm localhost/minbase date +%s.%N ;;
	esac
}

# warm_on ENGINE: warm mappings, and take them away when that is done (nothing is measured
# meanwhile), over and over, as a process group whose ID is in WARM. With erofs a mapping takes no time, so there are
# many: it is warm that is measured, not how it starts.
warm_on() {
	local count=$COUNT
	[ "$1" != erofs ] || count=$((COUNT * 15))
	# shellcheck disable=SC2016 # its own variables
	setsid bash -c 'while shiftoverlay warm --quiet --userns auto:size=65536 --count "$0" "$1" && : >"$2" && shiftoverlay prune --all --force && rm "$2"; do :; done' \
		"$count" "localhost/$IMAGE" "$SANDBOX/pruning" >"$SANDBOX/warm.log" 2>&1 &
	WARM=$!
	sleep 1
}

# turn N FOLDER SIGNAL NAME: one sample of each command to FOLDER/NAME.COMMAND, while
# warm goes on (CONT) or is stopped (STOP). The Nth command is the first.
turn() {
	local i c
	while
		kill -CONT -- "-$WARM" 2>/dev/null || die "warm has failed: $(cat "$SANDBOX/warm.log")"
		[ -e "$SANDBOX/pruning" ]
	do sleep 0.1; done
	kill "-$3" -- "-$WARM"
	sleep 0.2
	for ((i = 0; i < ${#commands[@]}; i++)); do
		c=${commands[($1 + i) % ${#commands[@]}]}
		sample "$c"
		echo "$took" >>"$2/$4.$c"
	done
}

# pairs FOLDER: PAIRS of turns, each order as often as the other.
pairs() {
	local i
	for ((i = 0; i < PAIRS; i++)); do
		if ((i % 2)); then
			turn $i "$1" STOP idle
			turn $i "$1" CONT warm
		else
			turn $i "$1" CONT warm
			turn $i "$1" STOP idle
		fi
	done
	kill -CONT -- "-$WARM"
}

# hits: warm COUNT mappings, then set `hits` to how many of COUNT containers built nothing.
hits() {
	local i
	hits=0
	timed shiftoverlay warm --userns auto:size=65536 --count "$COUNT" "localhost/$IMAGE"
	warm_took=$took
	for ((i = 0; i < COUNT; i++)); do
		timed podman --log-level=debug create --name "hit$i" "$AUTO" "localhost/$IMAGE" true
		timed podman --log-level=debug start "hit$i"
		if grep -q 'built now: false' "$MEASURE_LOG" && ! grep -q 'built now: true' "$MEASURE_LOG"; then
			hits=$((hits + 1))
		fi
	done
	podman rm -f -t 0 -a >/dev/null
}

# engine NAME: all of it with an engine.
engine() {
	local i c idle warm ratio dir=$SANDBOX/samples/$1
	sandbox_disk "$SANDBOX/memory/row.img" "$SANDBOX/row" "$ROW_FS_SIZE"
	sandbox_store "$SANDBOX/row/store" shiftoverlay
	sandbox_engine "$1"
	timed podman import -q "$BUILD/images/$IMAGE.tar" "localhost/$IMAGE"
	timed podman import -q "$BUILD/images/minbase.tar" localhost/minbase
	for ((i = 0; i < 10; i++)); do timed podman create --name "stopped$i" localhost/minbase true; done
	mkdir -p "$dir"
	warm_on "$1"
	pairs "$dir"
	kill -- "-$WARM"
	wait "$WARM" 2>/dev/null || true
	rm -f "$SANDBOX/pruning"
	timed shiftoverlay prune --all --force
	for c in "${commands[@]}"; do
		# shellcheck disable=SC2046 # one word for each
		idle=$(median $(cat "$dir/idle.$c")) warm=$(median $(cat "$dir/warm.$c"))
		ratio=$(awk -v a="$warm" -v b="$idle" 'BEGIN { printf "%.2f", a / b }')
		# shellcheck disable=SC2016 # Markdown
		printf '| `%s` | podman %s | %.3f | %.3f | %s |\n' "$1" "$c" "$idle" "$warm" "$ratio" >>"$table"
		awk -v r="$ratio" -v bar="$BAR" 'BEGIN { exit !(bar > 0 && r > bar) }' && missed=1
		say "$1: podman $c: $idle, $warm: $ratio"
	done
	hits
	# shellcheck disable=SC2016 # Markdown
	printf '\n`%s`: %s of %s containers found what was warmed; warming took %s s.\n' "$1" "$hits" "$COUNT" "$warm_took" >>"$notes"
	[ "$hits" -eq "$COUNT" ] || missed=1
	umount -R -l "$SANDBOX/row"
	rm -f "$SANDBOX/memory/row.img"
}

missed=0 version=$(podman --version) table=$SANDBOX/table notes=$SANDBOX/notes
mkdir -p "$SANDBOX/memory"
mount -t tmpfs -o size=90% bench-memory "$SANDBOX/memory"
for e in $ENGINES; do engine "$e"; done
cat <<END

$COUNT mappings of $IMAGE.tar, $(thousands "$(tar -tf "$BUILD/images/$IMAGE.tar" | wc -l)") entries. Seconds, medians of $PAIRS.
$version, kernel $(uname -r), ext4 on a loop device in memory, no idmapped mounts, $(nproc) CPUs.

| engine | | idle | while \`warm\` runs | ratio |
|---|---|---:|---:|---:|
END
cat "$table" "$notes"
exit $missed
