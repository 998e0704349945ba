#!/usr/bin/env bash
# test-newer.sh [5.8|6.0]...: the tests of shiftoverlay-mount with podman and
# buildah of later years as they are (hack/build-tools.sh newer), which no driver
# of ours can be built into: they link another storage library. Not part of `make
# test`: building them takes a quarter of an hour the first time, the tests take
# three to four minutes for each. The logs are in $BUILD/test/newer-VERSION.tap.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO"

[ $# -gt 0 ] || set -- 5.8 6.0
rc=0
for version; do
	[ -x "$BUILD/newer-$version/podman" ] || die "no $BUILD/newer-$version/podman: run make newer"
	say "=== $("$BUILD/newer-$version/podman" --version), $("$BUILD/newer-$version/buildah" --version)"
	# podman 6 runs with cgroup version 2 only.
	SANDBOX_CGROUP=v2 PROGRAM_TOOLS=newer-$version FILES="$(echo tests/bats/5[012]?-*program.bats)" \
		hack/bats.sh "$BUILD/test/newer-$version.tap" || rc=1
done
exit $rc
