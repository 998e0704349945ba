#!/usr/bin/env bash
# bats.sh [LOG]: the integration tests with real podman and buildah, as TAP on
# standard output and in LOG (default $BUILD/test/bats.tap). The files are dealt
# out to two sandboxes that work at the same time; what the second says is shown
# when the first has ended. Variables: FILTER (a regular expression on test
# names), FILES (default: all but those of ordinary users), BATS_SANDBOXES (default 2), ROOTLESS:
# if set, as an ordinary user (rootless.sh), by default those files that concern him.
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
log=${1:-$BUILD/test/bats.tap}
mkdir -p "$(dirname "$log")"
cd "$REPO" || exit 1
need bats
: "${BATS_SANDBOXES:=2}"
args=(--tap --timing)
# One that hangs fails, and the others have their turn. No container sleeps for so long.
export BATS_TEST_TIMEOUT=${BATS_TEST_TIMEOUT:-611}
[ -z "${FILTER:-}" ] || args+=(--filter "$FILTER")
enter=(hack/sandbox.sh)
if [ -n "${ROOTLESS:-}" ]; then
	# Engines for root only, and the mount program, which hands over to fuse-overlayfs
	# there, have nothing to test; what copyup does, one file of each kind shows.
	enter=(hack/rootless.sh --unshare)
	: "${FILES:=$(echo tests/bats/0[0-4]*.bats tests/bats/0[67]*.bats tests/bats/[1-3]*.auto.bats tests/bats/104-shift.copyup.bats tests/bats/400-cli.bats)}"
fi
read -ra files <<<"${FILES:-$(echo tests/bats/[0-6]*.bats)}"
[ "$BATS_SANDBOXES" -le "${#files[@]}" ] || BATS_SANDBOXES=${#files[@]}

# part N: every file whose turn it is.
part() {
	local i mine=()
	for i in "${!files[@]}"; do
		[ $((i % BATS_SANDBOXES)) -ne "$1" ] || mine+=("${files[i]}")
	done
	"${enter[@]}" bats "${args[@]}" "${mine[@]}" 2>&1
}

rm -f "$log" "$log".[0-9]*
pids=()
for ((n = 1; n < BATS_SANDBOXES; n++)); do
	part "$n" >"$log.$n" &
	pids+=($!)
done
rc=0
part 0 | tee "$log.0" || rc=1
for n in "${!pids[@]}"; do
	wait "${pids[n]}" || rc=1
	cat "$log.$((n + 1))"
done
if [ -n "${ROOTLESS:-}" ]; then
	# And as the user himself, outside of the user namespace.
	hack/rootless.sh bats "${args[@]}" tests/bats/7*.bats 2>&1 | tee "$log.9" || rc=1
fi
cat "$log".[0-9]* >"$log"
rm -f "$log".[0-9]*
# A plan that was not carried out to its end is a failure, too.
planned=$(sed -nE 's/^1\.\.([0-9]+)$/\1/p' "$log" | awk '{ n += $1 } END { print n + 0 }')
seen=$(grep -cE '^(not )?ok [0-9]+' "$log")
if [ "$planned" -eq 0 ] || [ "$planned" -ne "$seen" ]; then
	echo "bats.sh: $seen of $planned planned tests reported a result" | tee -a "$log" >&2
	rc=1
fi
exit "$rc"
