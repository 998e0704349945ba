# Measuring a real podman, for demo.sh and bench-commit.sh; sourced, not run.
# (bench.sh measures with tools/benchplot.)
# shellcheck shell=bash disable=SC2034

# median NUMBER...: the middle one.
median() {
	printf '%s\n' "$@" | sort -g | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

# timed COMMAND...: run it and set `took` to its wall time in seconds. What it
# prints goes to $MEASURE_LOG; a command that fails ends everything.
timed() {
	local from=$EPOCHREALTIME to
	if ! "$@" >"$MEASURE_LOG" 2>&1; then
		cat "$MEASURE_LOG" >&2
		die "failed: $*"
	fi
	to=$EPOCHREALTIME
	took=$(awk -v a="${from/,/.}" -v b="${to/,/.}" 'BEGIN { printf "%.3f", b - a }')
}

# started COMMAND...: run a container whose command first prints `date +%s.%N`,
# and set `took` to the time from here until then. (Not until podman returns:
# podman looks only every 250 ms whether a container has ended, so its own end
# falls into one of two heaps, and says nothing.)
started() {
	local from=$EPOCHREALTIME at
	if ! "$@" >"$MEASURE_LOG" 2>&1; then
		cat "$MEASURE_LOG" >&2
		die "failed: $*"
	fi
	at=$(grep -m 1 -E '^[0-9]+\.[0-9]{9}$' "$MEASURE_LOG") || die "no time stamp in the output of: $*"
	took=$(awk -v a="${from/,/.}" -v b="$at" 'BEGIN { printf "%.3f", b - a }')
}

# usage DIR: set `used_kb` and `used_inodes` of DIR's file system.
usage() {
	sync -f "$1"
	read -r used_kb used_inodes < <(df -k --output=used,iused "$1" | tail -n 1)
}

# thousands NUMBER: 1234567 as 1,234,567.
thousands() {
	printf '%s\n' "$1" | sed -E ':a; s/^(-?[0-9]+)([0-9]{3})/\1,\2/; ta'
}

# shift_engine: what the current store would use now, and why not a cheaper one.
shift_engine() {
	podman info --format '{{index .Store.GraphStatus "Shift engine"}}' 2>/dev/null
}
