#!/usr/bin/env bats
# plugin-test worst-case: an image with everything that a change of owners or the
# merging of layers could get wrong, through the whole driver.

load helpers

# host ARGS...: plugin-test on this test's store.
host() {
	capture "$BUILD/plugin-test" --root "$GRAPH" --runroot "$RUN" "$@"
	printf '$ plugin-test %s\n%s\n' "$*" "$output"
}

setup_worst() {
	# shellcheck disable=SC2034 # for capture
	COMMAND_TIMEOUT=300
	host worst-case --program "$(command -v busybox)" worst
	is "$status" 0 "exit status of worst-case"
	assert "$output" =~ 'left out: immutable: the storage library cannot delete' "what no store can have"
}

remove_worst() {
	host rmi worst
	is "$status" 0 "exit status of rmi"
}

@test "verify finds no difference in the worst-case image" {
	local engine
	setup_worst
	for engine in idmap erofs metacopy; do
		host --engine "$engine" verify worst --content --uidmap 0:2147483647:65536
		is "${lines[-1]}" 'differences: 0' "engine $engine, one extent"
		assert "${lines[-2]#paths: }" -gt 50000 "paths"
		assert "$output" =~ "engine: $engine" "the engine in use"
	done
	remove_worst
}

@test "the worst-case image without idmapped mounts" {
	local engine
	setup_worst
	export _CONTAINERS_OVERLAY_DISABLE_IDMAP=yes
	for engine in erofs metacopy; do
		host --engine "$engine" verify worst --uidmap 0:100000:1000 --uidmap 1000:500000:1 --uidmap 1001:101001:64535
		is "${lines[-1]}" 'differences: 0' "engine $engine, three extents"
	done
	# Files of the image have ACLs, so erofs is passed over.
	host --log-level debug verify worst --uidmap 0:300000:65536
	assert "$output" =~ 'files have POSIX ACLs' "why not erofs"
	assert "$output" =~ 'differences: 0' "engine auto"
	unset _CONTAINERS_OVERLAY_DISABLE_IDMAP
	remove_worst
}

@test "a command runs in the worst-case image" {
	setup_worst
	host run --uidmap 0:100000:65536 worst -- sh -c 'cat /hostile/user/redirect; stat -c " %u:%g %a" /links/a; ls /wide | wc -l; echo x >/links/a'
	is "$status" 0 "exit status of run"
	is "${lines[0]}" 'own 1:1 6755' "content, owner and mode"
	is "${lines[1]}" 50000 "entries of a large folder"
	remove_worst
}
