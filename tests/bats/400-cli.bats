#!/usr/bin/env bats
# The operator's tool beside a real podman: what is warmed is a cache hit, what a
# container needs is spared, what is damaged is found and mended.

load helpers

AUTO=--userns=auto:size=65536
CACHE=shiftoverlay-shifted

setup_file() {
	[ -n "${SANDBOX_INSIDE:-}" ] || { echo "these tests need the sandbox: make bats" >&2 && return 1; }
}

# builds_of RUN-OPTIONS...: start a container and set BUILT to how many shifted
# lowers were built for it, as the driver's debug messages say.
builds_of() {
	capture podman --log-level=debug run --rm "$@"
	is "$status" 0 "podman run: exit status"
	BUILT=$(grep -c 'built now: true' <<<"$output") || true
	assert "$(grep -c 'built now: ' <<<"$output")" -ge 1 "messages about shifted lowers"
}

# start_once CONTAINER: start it, show its output, and wait until it is unmounted,
# which podman does in the background.
start_once() {
	run_podman start --attach "$1"
	local said=$output i
	layer_of "$1"
	for ((i = 0; i < 100; i++)); do
		mountpoint -q "$GRAPH/shiftoverlay/$LAYER/merged" || break
		sleep 0.1
	done
	output=$said
}

# with_engine ENGINE: the current store's engine, as on a kernel that needs it.
with_engine() {
	sandbox_engine "$@"
	unset _CONTAINERS_OVERLAY_DISABLE_IDMAP
}

@test "info shows engines, store and ranges" {
	import
	cli info
	assert "$output" =~ 'idmap:' "engines"
	assert "$output" =~ "$GRAPH" "graph root"
	local range=2147483647:2147483648 left=32768
	[ -z "${SANDBOX_ROOTLESS:-}" ] || range=1:1000000 left=15
	assert "$output" =~ $range "range of /etc/subuid"
	assert "$output" =~ "$left mappings of 65536" "mappings that are left"
	cli info --format '{{.Cache.Entries}} {{.UserNS.Left}}'
	is "$output" "0 $left" "template"
	run_podman run -d --name one "$AUTO" "$IMAGE" sleep 300
	cli info --format json
	is "$(jq -r .UserNS.Left <<<"$output")" $((left - 1)) "mappings that are left beside a container"
	is "$(jq -r .UserNS.Containers <<<"$output")" 1 "containers with a user namespace"
}

# warm_then_start ENGINE [LINE]: three mappings, and three containers that hold them.
warm_then_start() {
	local i
	with_engine "$@"
	import
	builds_of "$AUTO" "$IMAGE" true
	assert "$BUILT" -ge 1 "a start without warm builds, so the count means something"
	cli prune --all --force
	cli warm --userns auto:size=65536 --count 3 "$IMAGE" --format json
	is "$(jq length <<<"$output")" 3 "results"
	cli check
	for i in 1 2 3; do
		capture podman --log-level=debug run -d --name "con$i" "$AUTO" "$IMAGE" sleep 300
		is "$status" 0 "start $i"
		assert "$(grep -c 'built now: false' <<<"$output")" -ge 1 "start $i uses what was warmed"
		assert "$output" !~ 'built now: true' "start $i builds"
	done
	cli ls --format '{{.Containers}}'
	for i in 1 2 3; do assert "$output" =~ "con$i" "container con$i as user"; done
	cli check
	# A fourth mapping was not warmed.
	builds_of "$AUTO" "$IMAGE" stat -c %u:%g /etc/passwd
	assert "$output" =~ 0:0 "owner inside"
}

@test "warm, then start: metacopy" {
	warm_then_start metacopy
	assert "$BUILT" -eq 1 "a mapping that was not warmed"
}

@test "warm, then start: erofs, one image for all" {
	not_rootless "EROFS is for root"
	warm_then_start erofs
}

@test "warm, then start: erofs, an image for each mapping" {
	not_rootless "EROFS is for root"
	warm_then_start erofs 'erofs_without = "idmap"'
	assert "$BUILT" -eq 1 "a mapping that was not warmed"
}

@test "warm, then start: copyup" {
	warm_then_start copyup
}

# quickest ENOUGH COMMAND...: the shortest of five runs, in milliseconds, as QUICKEST;
# of at most fifty until it is ENOUGH, as others are at work here, too.
quickest() {
	local i start took enough=$1
	shift
	QUICKEST=''
	for ((i = 0; i < 5 || (i < 50 && QUICKEST > enough); i++)); do
		start=${EPOCHREALTIME/./}
		"$@" >/dev/null
		took=$(((${EPOCHREALTIME/./} - start) / 1000))
		[ -n "$QUICKEST" ] && [ "$QUICKEST" -le "$took" ] || QUICKEST=$took
	done
}

@test "many mappings: podman images, ps and system df take no longer, and count nothing twice" {
	local c one=() words df
	with_engine metacopy
	import
	local commands=("images" "ps -a" "system df")
	cli warm --userns auto:size=65536 --count 1 "$IMAGE"
	capture podman system df --format json
	df=$(jq -r '.[] | select(.Type == "Images") | "\(.Total) \(.RawSize // .Size)"' <<<"$output")
	for c in "${commands[@]}"; do
		read -ra words <<<"$c"
		quickest 100000 podman "${words[@]}"
		one+=("$QUICKEST")
	done
	local count=100
	[ -z "${SANDBOX_ROOTLESS:-}" ] || count=14 # that many ranges he has
	# It rests while others are at work.
	COMMAND_TIMEOUT=500 cli warm --userns auto:size=65536 --count $count "$IMAGE"
	cli ls --format '{{.Mapping}}'
	assert "$(wc -l <<<"$output")" -ge $count "shifted lowers"
	for c in "${!commands[@]}"; do
		read -ra words <<<"${commands[c]}"
		quickest $((one[c] * 3 / 2 + 20)) podman "${words[@]}"
		echo "podman ${commands[c]}: ${one[c]} ms with one mapping, $QUICKEST ms with $count"
		assert "$QUICKEST" -le $((one[c] * 3 / 2 + 20)) "milliseconds of podman ${commands[c]} with $count mappings; with one it took ${one[c]}"
	done
	run_podman images -q
	is "$(wc -l <<<"$output")" 1 "images"
	capture podman system df --format json
	is "$(jq -r '.[] | select(.Type == "Images") | "\(.Total) \(.RawSize // .Size)"' <<<"$output")" "$df" "images and their size in system df"
}

@test "warm names a short image name and a mapping of its own" {
	with_engine metacopy
	import
	cli warm --uidmap 0:200000:65536 --quiet bb
	is "${#lines[@]}" 1 "lines"
	builds_of --uidmap 0:200000:65536 "$IMAGE" true
	is "$BUILT" 0 "builds after warm"
	cli 125 warm bb
	assert "$output" =~ 'auto:size=65536' "the remedy"
	cli 125 warm --userns auto nosuch
	assert "$output" =~ 'size' "the remedy"
	cli 125 warm --userns auto:size=65536 nosuch
	assert "$output" =~ 'podman pull nosuch' "the remedy"
}

@test "prune spares what containers need, running or stopped" {
	with_engine metacopy
	import
	run_podman run -d --name runs "$AUTO" "$IMAGE" sleep 300
	run_podman create --name stopped --uidmap 0:300000:65536 "$IMAGE" true
	start_once stopped
	cli warm --uidmap 0:400000:65536 "$IMAGE"
	cli ls --quiet
	is "${#lines[@]}" 3 "entries"
	cli prune --all --dry-run
	assert "$output" =~ '0:400000:65536' "what would go"
	assert "$output" !~ '0:300000:65536' "what a stopped container needs"
	cli ls --quiet
	is "${#lines[@]}" 3 "entries after --dry-run"
	capture "$BUILD/shiftoverlay" prune --all <<<n
	assert "$output" =~ 'Are you sure you want to continue\? \[y/N\]' "the question"
	cli ls --quiet
	is "${#lines[@]}" 3 "entries after a no"
	cli prune --all --force
	cli ls --format '{{.Mapping}} {{.Containers}}' --sort used
	is "${#lines[@]}" 2 "entries after prune"
	assert "$output" =~ 'runs' "the running container"
	assert "$output" =~ '0:300000:65536 stopped' "the stopped container"
	run_podman exec runs stat -c %u:%g /etc/passwd
	is "$output" 0:0 "owner inside, after prune"
	cli check
}

@test "check finds a damaged entry, and --repair mends it" {
	with_engine metacopy
	import
	run_podman create --name con --uidmap 0:300000:65536 "$IMAGE" stat -c %a /etc/group
	start_once con
	is "$output" 644 "mode before"
	cli check
	local lower
	lower=("$GRAPH/$CACHE"/*/*/data/tree)
	chmod 4711 "${lower[0]}/etc/group"
	start_once con
	is "$output" 4711 "a container sees the damage"
	cli 1 check
	assert "$output" =~ 'etc/group: mode: 0644 != 4711' "the difference"
	assert "$output" =~ 'repair would' "what --repair would do"
	cli 1 check --quiet
	is "$output" '' "output with --quiet"
	cli check --repair
	cli check
	start_once con
	is "$output" 644 "mode after the repair"
	cli check
}

@test "check --repair leaves alone what a running container needs" {
	with_engine metacopy
	import
	run_podman run -d --name con "$AUTO" "$IMAGE" sleep 300
	local lower
	lower=("$GRAPH/$CACHE"/*/*/data/tree)
	chmod 4711 "${lower[0]}/etc/group"
	cli 1 check --repair
	assert "$output" =~ 'container con is mounted' "who needs it"
	[ -d "${lower[0]}" ] || die "the entry of a running container is gone"
	run_podman stop -t 0 con
	cli check --repair
	[ ! -d "${lower[0]}" ] || die "the damaged entry is still there"
	run_podman start con
	run_podman exec con stat -c %a /etc/group
	is "$output" 644 "mode after the repair"
}

@test "check finds a damaged image, and what crashes left" {
	not_rootless "EROFS is for root"
	with_engine erofs
	import
	run_podman create --name con "$AUTO" "$IMAGE" true
	start_once con
	cli check
	local image
	image=("$GRAPH/$CACHE"/*/*/data/image.erofs)
	dd if=/dev/zero of="${image[0]}" bs=1 seek=2048 count=4096 conv=notrunc status=none
	layer_of con
	ln -s /nowhere "$GRAPH/shiftoverlay/$LAYER/diff1"
	mkdir -p "$GRAPH/$CACHE/tmp/KILLED/data"
	: >"${image[0]%/data/*}/users/nobody-of-this-name"
	cli 1 check
	assert "$output" =~ 'entry '[0-9a-f]+/[0-9a-f]+': ' "the image"
	assert "$output" =~ "$LAYER/diff1" "the link"
	assert "$output" =~ tmp/KILLED "the build"
	assert "$output" =~ nobody-of-this-name "the registration"
	# The hourly trimming, which podman does at the end of a command, is due.
	rm -f "$RUN"/shiftoverlay/shiftoverlay-trimmed
	cli 1 check
	cli ls
	[ -e "$GRAPH/$CACHE/tmp/KILLED" ] || die "check without --repair changed something"
	cli check --repair
	[ ! -e "$GRAPH/$CACHE/tmp/KILLED" ] || die "the build is still there"
	cli check
	start_once con
	cli check
}

@test "another driver's store is refused with the remedy" {
	use_store o overlay
	run_podman images -q
	cli 125 ls
	assert "$output" =~ 'driver = "shiftoverlay"' "the remedy"
	assert "$output" =~ "${CONTAINERS_STORAGE_CONF%/*}/(config/containers/)?storage.conf" "the file"
}
