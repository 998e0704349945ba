#!/usr/bin/env bash
# test.sh: everything that has to be right before a change lands, in order:
# packages, lint, the tools, the images, Go tests (as root too, with the race
# detector), bats, five minutes of torture, a selection of other projects' tests.
# Says at its end what ran, what was skipped and why, and what failed tests said:
# the machine may be gone when someone asks.
#
# Variables: BUILD; FILTER (only these bats tests); STEPS (only these steps,
# e.g. STEPS="lint unit"; in CI the random round trips are one more); those of
# hack/roundtrip.sh. Logs: $BUILD/test/.
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO" || exit 1
logs=$BUILD/test
mkdir -p "$logs"
rm -f "$logs"/*.json "$logs"/*.tap "$logs"/{summary,conformance} "$BUILD/torture/results"
: "${STEPS:=deps lint unit tools images root bats bats-rootless torture conformance}"
[ -z "${CI:-}" ] || STEPS+=' roundtrip'
passed=0 failed=0 skipped=0
declare -A failed_in=() # step: number of failed tests

# note TEXT: a line of the summary.
note() {
	printf '%s\n' "$*" >>"$logs/summary"
}

# step NAME TITLE COMMAND...: run a step unless STEPS leaves it out.
step() {
	local name=$1 title=$2 start=$SECONDS rc=0
	shift 2
	case " $STEPS " in
	*" $name "*) ;;
	*)
		note "  skip  $title: left out by STEPS"
		return 0
		;;
	esac
	say "=== $title"
	"$@" || rc=$?
	if [ $rc -eq 0 ]; then
		note "  ok    $title ($((SECONDS - start)) s)"
	else
		note "  FAIL  $title ($((SECONDS - start)) s, exit status $rc)"
		failed_steps="${failed_steps:-} $name"
	fi
	return 0
}

# count_go STEP LOG: add up the results of a go test -json log.
count_go() {
	local step=$1
	shift
	local n dead
	[ -s "$1" ] || return 0
	for n in pass fail skip; do
		printf -v "go_$n" %s "$(jq -rR 'fromjson? | select(.Test != null and .Action == "'$n'") | .Action' "$1" | wc -l)"
	done
	# A package that failed without a failed test: it does not build, or died.
	mapfile -t dead < <(jq -rRs '[split("\n")[] | fromjson? // empty | select(.Action == "fail")] |
		group_by(.Package)[] | select(all(.[]; .Test == null)) | .[0].Package // empty' "$1")
	go_fail=$((go_fail + ${#dead[@]}))
	# shellcheck disable=SC2154 # set by printf -v
	note "        $go_pass passed, $go_fail failed, $go_skip skipped"
	failed_in[$step]=$go_fail
	passed=$((passed + go_pass)) failed=$((failed + go_fail)) skipped=$((skipped + go_skip))
	jq -rRs '[split("\n")[] | fromjson? // empty] | map(select(.Test != null)) |
		group_by(.Package + " " + .Test)[] | select(any(.[]; .Action == "skip")) |
		"        skipped: " + (.[0].Package | split("/") | last) + " " + .[0].Test + ": " +
		([.[] | select(.Action == "output") | .Output | select(test("^ +[^ ]+\\.go:[0-9]+: "))] | last // "no reason given"
		 | sub("^ +[^ ]+: "; "") | rtrimstr("\n"))' "$1" >>"$logs/summary"
	jq -rRs '[split("\n")[] | fromjson? // empty] | map(select(.Test != null)) |
		group_by(.Package + " " + .Test)[] | select(any(.[]; .Action == "fail")) |
		"        failed: " + (.[0].Package | split("/") | last) + " " + .[0].Test,
		([.[] | select(.Action == "output") | "          " + (.Output | rtrimstr("\n"))[:400]] | .[-40:][])' "$1" >>"$logs/summary"
	[ ${#dead[@]} -eq 0 ] || printf '        failed: package %s\n' "${dead[@]}" >>"$logs/summary"
}

# count_tap STEP LOG: the same for a TAP log.
count_tap() {
	local step=$1
	shift
	local p f s
	[ -s "$1" ] || return 0
	s=$(grep -cE '^ok [0-9]+ .*# skip' "$1")
	p=$(($(grep -cE '^ok [0-9]+' "$1") - s))
	f=$(grep -cE '^not ok [0-9]+' "$1")
	note "        $p passed, $f failed, $s skipped"
	failed_in[$step]=$f
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
	awk '/^(not )?ok [0-9]+ / { failed = 0 }
		/^not ok / { sub(/^not ok [0-9]+ /, ""); print "        failed: " $0; failed = 1; lines = 0; next }
		failed && /^#/ && lines++ < 60 { print "          " substr($0, 1, 400) }
		/^ok [0-9]+ .* # skip/ { sub(/^ok [0-9]+ /, ""); sub(/ # skip */, ": "); print "        skipped: " $0 }' "$1" >>"$logs/summary"
}

root_only() {
	if [ "$(id -u)" != 0 ]; then
		note "  skip  $1: needs root"
		[ -z "${CI:-}" ] || failed_steps="${failed_steps:-} $1"
		return 1
	fi
}

bats_run() {
	compgen -G 'tests/bats/*.bats' >/dev/null || { say "no bats files"; return 1; }
	hack/bats.sh "$logs/bats.tap"
}

# conformance_run: their failures count only where overlay has none, so they are
# not added to ours.
conformance_run() {
	hack/conformance/run.sh --quick | tee "$logs/conformance.log"
	local rc=${PIPESTATUS[0]}
	tail -n 20 "$logs/conformance.log" >"$logs/conformance"
	# Which tests, and what they said: the machine may be gone when someone asks.
	[ "$rc" -eq 0 ] || tail -n 30 "$BUILD"/conformance/quick/*/auto/*.again 2>/dev/null || true
	return "$rc"
}

step deps 'Debian packages' hack/deps.sh
step lint 'lint' hack/lint.sh
if [ "$(id -u)" != 0 ]; then
	step unit 'unit tests with the race detector' hack/go-test.sh "$logs/unit.json" -race ./...
	count_go unit "$logs/unit.json"
fi
step unit 'unit tests of the bench tool' env GOFLAGS= go test -C tools/benchplot -short ./...
step unit 'unit tests of the conformance tool' env GOFLAGS= go test -C tools/conform ./...
step unit 'unit tests of the CRI tool' env GOFLAGS= go test -C tools/cri ./...
if root_only 'root tests, tools, images and bats'; then
	step tools 'podman, buildah, CRI-O and runc with the driver' hack/build-tools.sh
	step tools "the distribution's podman and buildah" hack/stock.sh
	step tools 'packages' hack/packages.sh
	step images 'test images' hack/images.sh
	export SHIFT_TEST_MUST_RUN=all
	# The worst case works with large trees on three file systems; the detector,
	# which looks at threads, would see there what it sees in the others.
	mapfile -t with_race < <(go list ./... | grep -v '/worstcase$')
	step unit 'unit and root tests with the race detector, none may be skipped' hack/go-test.sh "$logs/unit.json" -race "${with_race[@]}"
	count_go unit "$logs/unit.json"
	step root 'the worst case, none may be skipped' hack/go-test.sh "$logs/root.json" ./internal/worstcase
	count_go root "$logs/root.json"
	case " $STEPS " in
	*" roundtrip "*)
		step roundtrip 'random round trips in large numbers' hack/roundtrip.sh "$logs/roundtrip"
		for log in "$logs"/roundtrip-*.json; do
			count_go roundtrip "$log"
			[ ! -s "$log" ] || jq -rR 'fromjson? | select(.Action == "output") | .Output | select(test("SEED=|sequences, ")) |
				sub("^ *[^ ]+: "; "        ") | rtrimstr("\n")' "$log" >>"$logs/summary"
		done
		;;
	*) note '  skip  random round trips in large numbers: only in CI, or with STEPS="… roundtrip"' ;;
	esac
	step bats 'bats with real podman and buildah' bats_run
	count_tap bats "$logs/bats.tap"
	step bats-rootless 'bats as an ordinary user' env ROOTLESS=1 hack/bats.sh "$logs/bats-rootless.tap"
	count_tap bats-rootless "$logs/bats-rootless.tap"
	step torture 'torture, the short run' hack/torture.sh --short
	[ ! -s "$BUILD/torture/results" ] || note "$(sed 's/^/        /' "$BUILD/torture/results")"
	step conformance "a selection of other projects' tests" conformance_run
	[ ! -s "$logs/conformance" ] || note "$(sed 's/^/        /' "$logs/conformance")"
fi

# A step that failed without a failed test (lint, a build) counts as one failure.
for s in ${failed_steps:-}; do
	case $s in
	unit | root | roundtrip | bats | bats-rootless) [ "${failed_in[$s]:-0}" -gt 0 ] || failed=$((failed + 1)) ;;
	*) failed=$((failed + 1)) ;;
	esac
done
printf '\n=== what ran (logs: %s)\n' "$logs"
cat "$logs/summary"
printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
[ "$failed" -eq 0 ] && [ -z "${failed_steps:-}" ]
