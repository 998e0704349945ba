#!/usr/bin/env bash
# go-test.sh LOG [go test arguments...]
#
# Runs go test, shows one line per package and whatever failed, and writes the
# whole story as JSON lines to LOG. As root, tests run in a sandbox: their mounts
# end with it, and TMPDIR is a journalled scratch file system. A sandbox has no
# network, so modules are fetched before.
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
[ $# -ge 1 ] || die "usage: go-test.sh LOG [go test arguments...]"
log=$1
shift
need go jq
mkdir -p "$(dirname "$log")"
cd "$REPO" || exit 1

export GORACE="${GORACE:-} suppressions=$REPO/hack/race.supp"
run=(go test -json -timeout 60m "$@")
go list -deps -test ./... >/dev/null || exit 1
[ "$(id -u)" != 0 ] || run=("$REPO/hack/sandbox.sh" "${run[@]}")
# Lines that are not JSON (a build that failed before any test) are shown as they are.
"${run[@]}" 2>&1 | tee "$log" | jq -rR --unbuffered '
	(fromjson? // {Action: "raw", Output: .}) as $e |
	if $e.Action == "raw" then $e.Output
	elif $e.Action == "build-output" then $e.Output | rtrimstr("\n")
	elif $e.Test == null and ($e.Action == "pass" or $e.Action == "fail") then
		"\($e.Action | ascii_upcase)  \($e.Package)  \($e.Elapsed // 0)s"
	elif $e.Test != null and $e.Action == "fail" then "--- FAIL: \($e.Package) \($e.Test)"
	else empty end' >&2
rc=${PIPESTATUS[0]}

# What the failed tests said, the end of it.
if [ "$rc" -ne 0 ]; then
	jq -rRs '
		[split("\n")[] | fromjson? // empty | select(.Test != null)] |
		group_by(.Package + " " + .Test)[] | select(any(.[]; .Action == "fail")) |
		"=== \(.[0].Package) \(.[0].Test)", ([.[] | select(.Action == "output") | .Output | rtrimstr("\n")] | .[-60:][])' "$log" >&2
fi
exit "$rc"
