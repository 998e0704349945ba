#!/usr/bin/env bash
# fuzz.sh: every fuzz test for FUZZTIME (default 10s) each.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO"
need go
ran=0
while read -r pkg; do
	while read -r name; do
		say "$name in $pkg for ${FUZZTIME:=10s}"
		go test -run '^$' -fuzz "^$name\$" -fuzztime "$FUZZTIME" "$pkg"
		ran=$((ran + 1))
	done < <(go test -list '^Fuzz' "$pkg" | grep '^Fuzz' || true)
done < <(grep -rlE --include='*_test.go' '^func Fuzz' cmd drivers internal pkg | xargs -r -n 1 dirname | sort -u | sed 's,^,./,')
[ "$ran" -gt 0 ] || die "no fuzz tests found"
say "$ran fuzz tests ran"
