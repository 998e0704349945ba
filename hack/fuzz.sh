#!/usr/bin/env bash
# fuzz.sh: every fuzz test for FUZZTIME (default 10s). FUZZ_JOBS of them run at a
# time (default: one for each processor), each with one worker; FUZZ is a regular
# expression for some ("internal/erofs FuzzPatch"). What one says when it fails is
# shown. Logs: $BUILD/test/fuzz/.
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO" || exit 1
need go
: "${FUZZTIME:=10s}" "${FUZZ_JOBS:=$(nproc)}" "${FUZZ:=.}"
logs=$BUILD/test/fuzz
rm -rf "$logs"
mkdir -p "$logs"

# fuzz PACKAGE NAME: one fuzz test.
fuzz() {
	local log=$logs/$2.log start=$SECONDS
	if go test -run '^$' -fuzz "^$2\$" -fuzztime "$FUZZTIME" -parallel 1 "./$1" >"$log" 2>&1; then
		say "$1 $2: nothing in $((SECONDS - start)) s, $(grep -oE 'execs: [0-9]+' "$log" | tail -n 1)"
	else
		cat "$log" >&2
		say "$1 $2: failed"
		: >"$logs/failed"
	fi
}

ran=0
while read -r package name; do
	while [ "$(jobs -rp | wc -l)" -ge "$FUZZ_JOBS" ]; do wait -n || true; done
	fuzz "$package" "$name" &
	ran=$((ran + 1))
done < <(grep -roE --include='*_test.go' '^func Fuzz[A-Za-z0-9]+' cmd drivers internal pkg | sed -E 's,/[^/]+:func , ,' | sort -u | grep -E "$FUZZ")
while [ -n "$(jobs -rp)" ]; do wait -n || true; done
[ "$ran" -gt 0 ] || die 'no fuzz tests found'
say "$ran fuzz tests ran"
[ ! -e "$logs/failed" ]
