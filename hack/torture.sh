#!/usr/bin/env bash
# torture.sh [--short] [AREA...]: breaks stores on purpose and looks whether
# anything is lost (tests/torture says what an area is). Runs all areas, or the
# Go tests that are named (TestDeath), each in a sandbox of its own, and ends with
# one line for each. Fails if an area failed, lost something, or said nothing. Root
# only.
#
# With --short all areas together take TORTURE_TOTAL seconds (default 300, each
# the same part); without, each does all that it has.
#
# Variables: BUILD; TORTURE_SEED (what random choices begin with; default: the
# time), TORTURE_TOTAL, TORTURE_JOBS (areas at a time; default 2, with --short 1),
# TORTURE_CONTAINERS (how many run at once; default 500, with --short 8), and those
# of hack/sandbox.sh. Logs: $BUILD/torture/.
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
short=''
if [ "${1:-}" = --short ]; then
	short=yes
	shift
fi
[ "$(id -u)" = 0 ] || die 'needs root: it mounts, kills and breaks file systems'
need go
cd "$REPO/tests/torture" || exit 1
logs=$BUILD/torture
mkdir -p "$logs"
rm -f "$logs"/*.{log,said} "$logs/results"
export TORTURE_SECONDS=0 TORTURE_SEED=${TORTURE_SEED:-$EPOCHSECONDS}
export SHIFT_TEST_MUST_RUN=all
: "${TORTURE_JOBS:=$([ -n "$short" ] && echo 1 || echo 2)}"
# Those that are still at work end with this, and their sandboxes with them.
# shellcheck disable=SC2046 # process numbers
trap 'kill $(jobs -p) 2>/dev/null; wait; exit 143' TERM INT HUP
alone=''

export TORTURE_FAULTDISK=$logs/faultdisk
# As -tags, which replaces those of GOFLAGS.
tags=containers_image_openpgp,exclude_graphdriver_btrfs,torture
GOFLAGS='' go build -C "$REPO/tools/faultdisk" -o "$TORTURE_FAULTDISK" . || die 'tools/faultdisk does not build'
export TORTURE_PROGRAM=$logs/shiftoverlay-mount
go build -tags "$tags" -o "$TORTURE_PROGRAM" ../../cmd/shiftoverlay-mount || die 'shiftoverlay-mount does not build'
go test -c -tags "$tags" -o "$logs/torture.test" . || die 'the tests do not build'
areas=("$@")
if [ $# -eq 0 ]; then
	mapfile -t areas < <("$logs/torture.test" -test.list '^Test')
	# Those that take long begin first, and the one that is to be alone is the last.
	mapfile -t areas < <(printf '%s\n' TestFull TestDeath TestProgram TestScaleRunning TestCrowdStorm TestHostileImages TestPowerCut "${areas[@]}" |
		awk '$0 != "TestCrowdHeld" && !seen[$0]++; END { print "TestCrowdHeld" }')
fi
[ ${#areas[@]} -gt 0 ] || die 'no areas'
[ -z "$short" ] || TORTURE_SECONDS=$((${TORTURE_TOTAL:-300} / ${#areas[@]}))
say "torture: ${#areas[@]} areas, TORTURE_SEED=$TORTURE_SEED TORTURE_SECONDS=$TORTURE_SECONDS"

# torture AREA: one, in a sandbox of its own.
torture() {
	local rc=0 said=$logs/$1.said
	say "=== $1"
	# A folder of a million files, and that shifted twice.
	[ -n "$short" ] || [ "$1" != TestHostileImages ] || export SANDBOX_FS_SIZE=${SANDBOX_FS_SIZE:-32G}
	TORTURE_RESULTS=$said "$REPO/hack/sandbox.sh" "$logs/torture.test" -test.v -test.timeout 0 -test.parallel 3 -test.run "^$1\$" >"$logs/$1.log" 2>&1 &
	# shellcheck disable=SC2064 # this process
	trap "kill $! 2>/dev/null; wait $!; exit 143" TERM
	wait $! || rc=$?
	if [ "$rc" -ne 0 ]; then
		tail -n 60 "$logs/$1.log" >&2
		echo "$1: failed, exit status $rc, see $logs/$1.log" >>"$said"
	elif [ ! -s "$said" ]; then
		echo "$1: said nothing, see $logs/$1.log" >>"$said"
	fi
}

for area in "${areas[@]}"; do
	# One that measures how long others wait has the machine for itself.
	jobs=$TORTURE_JOBS
	[[ $area != TestCrowdHeld && $alone != yes ]] || jobs=1
	while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n || true; done
	alone=''
	[ "$area" != TestCrowdHeld ] || alone=yes
	torture "$area" &
done
while [ -n "$(jobs -rp)" ]; do wait -n || true; done
for area in "${areas[@]}"; do cat "$logs/$area.said"; done >"$logs/results"
printf '\n=== torture (TORTURE_SEED=%s, %d s)\n' "$TORTURE_SEED" "$SECONDS"
cat "$logs/results"
! grep -vqE ' 0 losses$' "$logs/results"
