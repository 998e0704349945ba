#!/usr/bin/env bats
# background_after: the locks of the store are given back while an image is being
# shifted, and who opens the container waits.

load helpers

DEBIAN=localhost/debian

setup() {
	basic_setup
	[ -s "$BUILD/images/minbase.tar" ] || die "no $BUILD/images/minbase.tar; make images makes it"
	grep -qw autofs /proc/filesystems || skip "the kernel has no autofs"
}

# next_map: MAP gets the options for a mapping that no container has had, from FIRST on.
next_map() {
	FIRST=$((${FIRST:-100000} + 100000))
	MAP=(--uidmap="0:$FIRST:65536" --gidmap="0:$FIRST:65536")
}

# podman_late ENGINE ARGS...: run podman, and a process of its own mounts, as podman
# says to $WORK/log.
podman_late() {
	local engine=$1
	shift
	printf '$ podman %s\n' "$*"
	output=$(timeout --foreground --kill-after=10 "$COMMAND_TIMEOUT" podman --log-level debug "$@" 2>"$WORK/log" 3>&-) ||
		die "podman $1: exit status $?: $(tail -n 5 "$WORK/log")"
	assert "$(grep -c 'is mounted later, by process' "$WORK/log")" = 1 "engine $engine: how it was mounted"
}

@test "background_after: run, start, exec, cp, commit, mount" {
	import "$BUILD/images/minbase.tar" "$DEBIAN"
	local engine
	for engine in erofs metacopy copyup; do
		sandbox_engine "$engine" 'background_after = "1ms"'
		next_map
		podman_late "$engine" run --name one "${MAP[@]}" "$DEBIAN" sh -c 'stat -c %u:%g / /etc/passwd /etc/shadow; id -u; echo new >/etc/new'
		is "$output" $'0:0\n0:0\n0:42\n0' "engine $engine: owners inside"
		run_podman commit -q one "localhost/from-$engine"
		run_podman diff one
		assert "$output" =~ 'A /etc/new' "engine $engine: what the container changed"
		run_podman start -a one
		# Of an image that nobody has shifted yet: what was committed.
		next_map
		podman_late "$engine" run -d --name two "${MAP[@]}" "localhost/from-$engine" sleep 1000
		run_podman exec two stat -c %u:%g:%n /etc/new
		is "$output" 0:0:/etc/new "engine $engine: a committed file"
		run_podman inspect --format '{{.GraphDriver.Data.MergedDir}}' two
		is "$(owner "$output/etc/new")" "$FIRST:$FIRST" "engine $engine: owner outside"
		echo hello >"$WORK/hello"
		run_podman cp "$WORK/hello" two:/hello
		run_podman exec two stat -c %u:%g /hello
		is "$output" 0:0 "engine $engine: a copied file"
		run_podman stop -t 0 two
		run_podman start two
		run_podman exec two cat /hello
		is "$output" hello "engine $engine: after another start"
		next_map
		run_podman create --name three "${MAP[@]}" "$DEBIAN" true
		run_podman mount three
		local merged=$output
		is "$(owner "$merged/etc/passwd")" "$FIRST:$FIRST" "engine $engine: owner, mounted by hand"
		run_podman umount three
		run_podman rm -f -t 0 -a
		run_podman rmi "localhost/from-$engine"
	done
}

@test "background_after: a build, and several starts at a time" {
	import "$BUILD/images/minbase.tar" "$DEBIAN"
	local engine i pids
	for engine in erofs metacopy; do
		sandbox_engine "$engine" 'background_after = "1ms"'
		printf 'FROM %s\nRUN touch /built && chown 33:34 /built\n' "$DEBIAN" >"$WORK/Containerfile"
		next_map
		run_podman build -q --userns-uid-map="0:$FIRST:65536" --userns-gid-map="0:$FIRST:65536" -t "localhost/built-$engine" -f "$WORK/Containerfile" "$WORK"
		run_podman run --rm --userns=auto:size=65536 "localhost/built-$engine" stat -c %u:%g /built
		is "$output" 33:34 "engine $engine: owner of what was built"
		pids=()
		for i in 1 2 3 4; do
			next_map
			podman run --rm "${MAP[@]}" "$DEBIAN" stat -c %u:%g:%a /usr/bin/passwd >"$WORK/out.$i" 2>&1 3>&- &
			pids+=($!)
		done
		for i in 1 2 3 4; do
			wait "${pids[i - 1]}" || die "engine $engine: start $i: $(cat "$WORK/out.$i")"
			is "$(cat "$WORK/out.$i")" 0:0:4755 "engine $engine: start $i"
		done
		run_podman rm -f -t 0 -a
		run_podman rmi "localhost/built-$engine"
	done
}
