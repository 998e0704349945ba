#!/usr/bin/env bash
# lint.sh: golangci-lint (the version that tools/go.mod pins) on the Go code, the
# shell linter on the scripts, and a few checks of our own. With --fix it formats
# the Go code and repairs what can be repaired without thinking, instead.
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO" || exit 1
failed=0

# check NAME COMMAND...: run, say how it went, go on.
check() {
	local name=$1
	shift
	if "$@"; then
		say "lint: $name: ok"
	else
		say "lint: $name: FAILED"
		failed=1
	fi
}

linter() { # its path
	# GOFLAGS may hold build tags, which -modfile of the tool must not inherit.
	GOFLAGS='' go tool -modfile=tools/go.mod -n golangci-lint
}

golangci() { # run|fmt [ARGS...]
	local linter
	say 'lint: golangci-lint (built first where it is not cached: a few minutes)'
	linter=$(linter) && "$linter" "$@"
}

# Tools are modules of their own, so that nobody who uses the driver needs a
# plotting library.
check_tool() (
	linter=$(linter) && cd "tools/$1" &&
		GOFLAGS='' "$linter" run --timeout 15m -c "$REPO/.golangci.yml" ./...
)

scripts() {
	find hack contrib tests .ci -type f \( -name '*.sh' -o -name '*.bash' -o -path '.ci/run' \) 2>/dev/null | sort
}

check_shell() {
	local files
	need shellcheck
	mapfile -t files < <(scripts)
	shellcheck "${files[@]}"
}

# Every bats file parses (bats itself would only say so when it runs the file).
check_bats() {
	local f rc=0
	need bats
	for f in tests/bats/*.bats; do
		[ -e "$f" ] || continue
		# A link that has become a text would be a file without tests.
		[ "$(bats --count "$f")" -gt 0 ] || { echo "$f: no tests; is it to be a link to $(head -n 1 "$f")?"; rc=1; }
	done
	return "$rc"
}

# Links in the documentation lead somewhere, and the check finds those that do not.
check_links() {
	local bad rc=0 want
	bad=$(mktemp -d) || return
	# shellcheck disable=SC2016 # Markdown
	printf '# One `two`\n\n## One two\n\n[a](#one-two-1) [b](other.md#x) ![c](d.svg) `[e](f)`\n\n```sh\n[g](h)\n```\n' >"$bad/page.md"
	printf '# X\n\n[y](page.md#one-two) [z](page.md#z) [w](https://example.org/#w)\n' >"$bad/other.md"
	want=$'other.md:3: no heading #z in page.md\npage.md:5: no file d.svg'
	[ "$(hack/links.sh "$bad")" = "$want" ] || { echo "hack/links.sh is broken: it says $(hack/links.sh "$bad")"; rc=1; }
	rm -r "$bad"
	hack/links.sh || rc=1
	return "$rc"
}

# House rules that no linter knows: short files, nothing left to do, no paths
# of somebody's machine.
check_house() {
	local f n rc=0
	while read -r f; do
		n=$(wc -l <"$f")
		[ "$n" -lt 500 ] || { echo "$f: $n lines; split it (limit 500)" && rc=1; }
	done < <(find cmd drivers internal pkg tools -name '*.go')
	if grep -rnE '\b(TODO|FIXME|XXX)\b' --include='*.go' --include='*.sh' --include='*.bats' --include='*.md' \
		cmd drivers internal pkg tests contrib docs ./*.md 2>/dev/null; then
		echo 'finish it or file an issue; nothing in the code is left "to do"'
		rc=1
	fi
	return "$rc"
}

if [ "${1:-}" = --fix ]; then
	golangci run --timeout 15m --fix ./... || true # what is left, `make lint` tells
	golangci fmt
	exit
fi
check golangci-lint golangci run --timeout 15m ./...
check benchplot check_tool benchplot
check conform check_tool conform
check cri check_tool cri
check faultdisk check_tool faultdisk
check shellcheck check_shell
check bats check_bats
check links check_links
check house-rules check_house
exit $failed
