#!/usr/bin/env bash
# matrix.sh: runs the driver on Debian's kernels in a virtual machine, and writes
# docs/kernels.md. Software emulation: it takes a while. Nothing stays behind but
# $BUILD/vm, where the downloads are kept. Root only.
#
# Variables: KERNELS (default "5.10 6.1 6.12 newest"; what an earlier run had of others
# stays in the table); TESTS (a regexp of packages
# in tests/vm/tests; default: all); OUTPUT (default docs/kernels.md); SMP (2)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
partial=${KERNELS:-}
: "${KERNELS:=5.10 6.1 6.12 newest}" "${TESTS:=.}" "${OUTPUT:=$REPO/docs/kernels.md}" "${SMP:=2}"
need go
vm_setup
need jq
bin=$VM/bin out=$VM/matrix
mkdir -p "$bin"
[ -n "$partial" ] || rm -rf "$out"
rm -f "$out/list"
mkdir -p "$out"

say 'building the test binaries'
export CGO_ENABLED=0
(cd "$REPO" && go build -trimpath -o "$bin/plugin-test" ./cmd/plugin-test)
input=("$bin/plugin-test" "$out/list" "$BUILD/images/busybox.tar")
while read -r package args; do
	name=${package//\//_}.test
	(cd "$REPO" && go test -c -o "$bin/$name" "./$package")
	input+=("$bin/$name")
	echo "$name ${args%%#*}" >>"$out/list"
done < <(grep -v '^#' "$REPO/tests/vm/tests" | grep -E "^($TESTS)")
unset CGO_ENABLED
"$REPO/hack/images.sh" busybox
for tool in "$BUILD/podman" "$BUILD/runc" /usr/lib/podman/netavark; do
	[ ! -x "$tool" ] || input+=("$tool")
done

# results RELEASE: the outcome of every test without subtests, one JSON line each;
# a parent whose subtests were skipped is none that passed.
results() {
	local log package
	for log in "$out/$1/tests"/*.log; do
		package=${log##*/} package=${package%.test.log}
		go tool test2json <"$log" | jq -cs --arg package "$package" '
			[.[] | select(.Test != null)] | (map(.Test) | unique) as $names |
			group_by(.Test)[] | .[0].Test as $t |
			select([$names[] | select(startswith($t + "/"))] | length == 0) |
			{package: ($package | gsub("_"; "/")), test: $t,
			 # One that never ended (its binary was killed) failed.
			 result: ([.[].Action | select(. == "pass" or . == "fail" or . == "skip")] | last // "fail"),
			 text: ([.[].Output // empty | select(test("^\\s+\\S+\\.go:[0-9]+: "))] | last // "" |
				sub("^\\s+\\S+\\.go:[0-9]+: "; "") | rtrimstr("\n") | gsub("/mnt/tmp/\\S+"; "FOLDER"))}'
	done
}

failed=()
releases=()
for k in $KERNELS; do
	dir=$("$REPO/hack/vm/kernel.sh" "$k") || { failed+=("$k: no such kernel") && continue; }
	release=${dir##*/}
	case " ${releases[*]} " in *" $release "*) continue ;; esac
	disk=$out/disk.img
	rm -f "$disk"
	truncate -s 6G "$disk"
	mkfs.ext4 -q -F -E lazy_itable_init=1,nodiscard "$disk"
	say "booting $release"
	rm -rf "${out:?}/$release"
	rc=0
	DISKS=$disk OUTDIR=$out/$release TIMEOUT=${TIMEOUT:-14400} MEM=3072 SMP=$SMP RETRY=1 CONSOLE=$out/$release.console \
		"$REPO/hack/vm/run.sh" "$dir" "$REPO/tests/vm/matrix.sh" "${input[@]}" >"$out/$release.log" {vm_lock}>&- || rc=$?
	rm -f "$disk"
	[ "$rc" = 0 ] || failed+=("$release: status $rc, see $out/$release.log")
	[ -s "$out/$release/info.json" ] || continue
	results "$release" >"$out/$release/results.json"
	echo "$(date -u +%Y-%m-%d), commit $(git -C "$REPO" rev-parse --short HEAD 2>/dev/null || echo unknown)$(
		[ -z "$(git -C "$REPO" status --porcelain -- '*.go' 2>/dev/null)" ] || echo ' with changes')" >"$out/$release/commit"
	releases+=("$release")
	say "$release: $(jq -rs 'group_by(.result) | map("\(.[0].result) \(length)") | join(", ")' "$out/$release/results.json")"
done
[ ${#releases[@]} -gt 0 ] || die "no kernel was tried: ${failed[*]}"
mapfile -t releases < <(cd "$out" && dirname -- */results.json | sort -V)

# cell FILE: what a guest's file says, for a table.
cell() {
	case $(cat "$1" 2>/dev/null) in
	"ok "*) sed 's/^ok \(.*\)/\1 s/' "$1" ;;
	'no: '*) echo no ;;
	'') echo 'not tried' ;;
	*) echo '**failed**' ;;
	esac
}

# shellcheck disable=SC2016 # Markdown
document() {
	local r e
	cat <<-END
		# Kernels

		Made by \`make vm-matrix\`; do not edit.

		Debian's kernels in a virtual machine in software emulation (qemu, no KVM): a start takes some ten times as long as on
		hardware. ext4, root. Times are of \`plugin-test run\` with a mapping (make the mount, run a command, remove it), once for
		each engine; \`podman\` is a whole \`podman run --userns=auto\` with runc. "no" is explained below.

		| kernel | auto takes | idmap | erofs | metacopy | copyup | auto | podman | tests passed | failed | skipped |
		|---|---|---|---|---|---|---|---|---|---|---|
	END
	for r in "${releases[@]}"; do
		printf '| %s | %s |' "$r" "$(jq -r '.GraphStatus["Shift engine"]' "$out/$r/info.json")"
		for e in run-idmap run-erofs run-metacopy run-copyup run-auto podman; do printf ' %s |' "$(cell "$out/$r/$e")"; done
		for e in pass fail skip; do printf ' %s |' "$(jq -s --arg e $e 'map(select(.result == $e)) | length' "$out/$r/results.json")"; done
		echo
	done
	cat <<-END

		A test is one without subtests. A test that was skipped did not pass.
	END
	for r in "${releases[@]}"; do
		printf '\n## %s\n\n%s. ' "$r" "$(cat "$out/$r/commit")"
		jq -r '"auto takes `\(.GraphStatus["Shift engine"])`: \(.GraphStatus["Shift engine reason"])"' "$out/$r/info.json"
		echo
		for e in idmap erofs metacopy copyup; do
			case $(cat "$out/$r/run-$e" 2>/dev/null) in
			'no: '*) echo "- \`$e\` does not work: $(sed 's/^no: //' "$out/$r/run-$e")" ;;
			failed*) echo "- \`$e\`: the container did not start: $(cat "$out/$r/run-$e")" ;;
			esac
		done
		case $(cat "$out/$r/podman" 2>/dev/null) in failed*) echo "- podman: $(cat "$out/$r/podman")" ;; esac
		jq -rs '
			(map(select(.result == "fail")) | if length == 0 then empty else "\nFailed:\n", (.[] | "- \(.package) `\(.test)`: \(.text)") end),
			(map(select(.result == "skip")) | if length == 0 then empty else
				"\nSkipped:\n", (group_by(.text) | sort_by(-length)[] |
					"- \(length): \(if .[0].text == "" then "no reason given" else .[0].text end) (\(map(.package) | unique | join(", ")))") end)' \
			"$out/$r/results.json"
	done
	printf '\n## What is not run\n\n'
	echo 'Tests of these packages run (`tests/vm/tests`); where something is left out, this is what and why:'
	echo
	grep -v '^#' "$REPO/tests/vm/tests" | sed -E 's/^([^ ]+)$/- `\1`/; t; s/^([^ #]+) +([^#]+[^# ]) *$/- `\1` with `\2`/; t; s/^([^ ]+) +([^#]*[^# ]) +# (.*)$/- `\1` with `\2`: \3/'
	[ "$TESTS" = . ] || printf '\nThis run was of `TESTS=%s` only.\n' "$TESTS"
}
document >"$out/kernels.md"
mv "$out/kernels.md" "$OUTPUT"
say "wrote $OUTPUT"
[ ${#failed[@]} -eq 0 ] || { printf '%s\n' "${failed[@]}" >&2 && die 'not everything worked'; }
