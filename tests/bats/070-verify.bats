#!/usr/bin/env bats
# plugin-test verify: what a container sees under a mapping is what the kernel's
# own idmapped mounts of the same layers show, in every attribute of every file.

load helpers

ONE=(--uidmap "0:$FIRST_ID:65536")
THREE=(--uidmap 0:100000:1000 --uidmap 1000:500000:1 --uidmap 1001:101001:64535)

# host ARGS...: plugin-test on this test's store.
host() {
	capture "$BUILD/plugin-test" --root "$GRAPH" --runroot "$RUN" "$@"
	printf '$ plugin-test %s\n%s\n' "$*" "$output"
}

# verify_all IMAGE [FLAGS...]: each engine, one extent and three.
verify_all() {
	local image=$1 engine
	shift
	# shellcheck disable=SC2034 # for capture
	COMMAND_TIMEOUT=300
	host pull "tar:$BUILD/images/$image.tar" "$image"
	is "$status" 0 "exit status of pull"
	for engine in $ENGINES; do
		host --engine "$engine" verify "$image" "$@" "${ONE[@]}"
		is "${lines[-1]}" 'differences: 0' "$image, engine $engine, one extent"
		host --engine "$engine" verify "$image" "$@" "${THREE[@]}"
		is "${lines[-1]}" 'differences: 0' "$image, engine $engine, three extents"
	done
	host rmi "$image"
	is "$status" 0 "exit status of rmi"
}

@test "verify finds no difference in a debootstrap image, contents included" {
	verify_all minbase --content
}

@test "verify finds no difference in an image of 70,000 files" {
	# An ordinary user's copies of it would take minutes.
	[ -z "${SANDBOX_ROOTLESS:-}" ] || ENGINES=metacopy
	verify_all big
}

@test "verify finds a difference" {
	host pull "tar:$BUILD/images/busybox.tar" bb
	host --engine metacopy mount "${ONE[@]}" bb
	local id=${lines[-1]##* } lower
	host rm "$id"
	lower=("$GRAPH"/shiftoverlay-shifted/*/*/data/tree)
	chmod 4711 "${lower[0]}/etc/group"
	host --engine metacopy verify "${ONE[@]}" bb
	is "$status" 1 "exit status"
	assert "$output" =~ 'etc/group' "the file that differs"
	is "${lines[-1]}" 'differences: 1' "last line"
	host rmi bb
}
