#!/usr/bin/env bash
# roundtrip.sh [LOG-PREFIX]: the random round trips of the driver's tests (change
# a container, commit, look at the image under other mappings) in large numbers,
# for each engine with metacopy on and off, several processes at a time. Root
# only.
#
# Variables: SHIFT_ROUNDTRIP_N (sequences for each setup, default 1000),
# SHIFT_ROUNDTRIP_SEED (the first one's seed, default: the time).
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
prefix=${1:-$BUILD/test/roundtrip}
mkdir -p "$(dirname "$prefix")"
cd "$REPO" || exit 1
export SHIFT_TEST_MUST_RUN=all SHIFT_ROUNDTRIP_N=${SHIFT_ROUNDTRIP_N:-1000}
export SHIFT_ROUNDTRIP_SEED=${SHIFT_ROUNDTRIP_SEED:-${EPOCHSECONDS}000}
say "round trip: SHIFT_ROUNDTRIP_SEED=$SHIFT_ROUNDTRIP_SEED SHIFT_ROUNDTRIP_N=$SHIFT_ROUNDTRIP_N"

# What a process does, as a pattern of subtests; together they are all: a new
# engine's setups run with those that no other pattern names.
parts=('^idmap' '^metacopy' '^copyup$' '^copyup-' '^[^imc]')
pids=()
for i in "${!parts[@]}"; do
	hack/go-test.sh "$prefix-$i.json" -count=1 -run "^TestRoundTrip\$/${parts[i]}" ./drivers/shiftoverlay &
	pids+=($!)
done
rc=0
for pid in "${pids[@]}"; do wait "$pid" || rc=1; done
exit $rc
