#!/usr/bin/env bats
# shiftoverlay-mount as mount_program: changing to it and back, old and new
# versions of podman, and what it leaves to others. shared/ has what is the same
# as with the driver (500-shift.program.bats and following).

load helpers

AUTO=--userns=auto:size=65536

setup() {
	VARIANT=program PROGRAM=$BUILD/shiftoverlay-mount
	basic_setup
}

# without_program: the current store's settings lose the mount program.
without_program() {
	sed -i -e '/mount_program/d' "$CONTAINERS_STORAGE_CONF"
	printf 'mountopt = "nodev,metacopy=on"\n' >>"$CONTAINERS_STORAGE_CONF"
}

# with_program: they get it again.
with_program() {
	sed -i -e '/mountopt/d' "$CONTAINERS_STORAGE_CONF"
	printf 'mount_program = "%s"\n' "$PROGRAM" >>"$CONTAINERS_STORAGE_CONF"
}

# changed NAME IMAGE: a stopped container that has changed something.
changed() {
	run_podman run --name "$1" "$AUTO" "$2" sh -ec '
		echo new >/srv/new; chown 33:34 /srv/new; chmod 711 /bin/busybox; rm -f /srv/shift/empty; rm -r /srv/shift/secret; mkdir /srv/shift/secret'
}

# look_changed IMAGE RUN-OPTIONS...: what changed wrote is in the image.
look_changed() {
	local image=$1
	shift
	run_podman run --rm "$@" "$image" sh -c 'stat -c %u:%g:%a /srv/new /bin/busybox /srv/shift/user1000; cat /srv/new; ls /srv/shift/secret; ls /srv/shift/empty 2>&1; true'
	is "$output" "33:34:644
0:0:711
1000:1000:640
new
ls: /srv/shift/empty: No such file or directory" "the image $image, run with $*"
}

@test "podman info shows the program" {
	run_podman info --format json
	is "$(jq -r '.store.graphDriverName' <<<"$output")" overlay "driver"
	is "$(jq -r '.store.graphOptions["overlay.mount_program"].Executable' <<<"$output")" "$PROGRAM" "executable"
	assert "$(jq -r '.store.graphOptions["overlay.mount_program"].Version' <<<"$output")" =~ '^shiftoverlay-mount: version ' "version"
}

@test "a store of plain overlay gets the program, and loses it" {
	without_program
	import
	run_podman run --name old "$IMAGE" sh -c 'echo old >/old; rm /srv/shift/empty'
	run_podman run --name oldns "$AUTO" "$IMAGE" sh -c 'cat /old 2>/dev/null && stat -c %u:%g /old /etc/passwd; echo old >/old; chown 5:6 /old'
	with_program
	run_podman start -a oldns
	is "$output" $'old\n5:6\n0:0' "a container of before, in its user namespace"
	run_podman diff old
	assert "$output" =~ 'A /old' "diff of a container of before"
	assert "$output" =~ 'D /srv/shift/empty' "diff of a container of before"
	changed con "$IMAGE"
	run_podman commit -q con localhost/new
	look_changed localhost/new
	# An image that nobody has mounted yet has the whiteouts of its archive. (Of another
	# container: the same bytes would be the same layer.)
	changed other "$IMAGE"
	run_podman commit -q other localhost/never
	layer_of localhost/never
	[ -e "$UPPER/srv/shift/.wh.empty" ] || die "no whiteout of the archive's form in $UPPER"
	local upper=$UPPER
	[ -e "$GRAPH/overlay/.has-mount-program" ] || die "no note of the library"
	run "$PROGRAM" --restore "$GRAPH"
	is "$status" 0 "exit status of --restore"
	assert "$output" =~ 'layers in .*/overlay have the kernel' "message of --restore"
	[ ! -e "$SHIFTED" ] || die "the cache is still there"
	is "$(stat -c '%F %t,%T' "$upper/srv/shift/empty")" 'character special file 0,0' "whiteout"
	[ ! -e "$GRAPH/overlay/.has-mount-program" ] || die "the library's note is still there"
	without_program
	PATH=${PATH#"$BUILD/stock:"} # podman 5: the old one says nothing of fuse-overlayfs that it takes
	look_changed localhost/never
	look_changed localhost/new "$AUTO"
	run_podman start -a oldns
	is "$output" $'old\n5:6\n0:0' "the container of before"
	is "$(cat "$GRAPH/overlay/.has-mount-program")" false "the library's note of its own search"
	run_podman container inspect --format '{{.State.ExitCode}}' con
	is "$output" 0 "the container of the time between"
	run_podman start -a con
	with_program
	look_changed localhost/new "$AUTO"
}

@test "a new podman: commit of a running container, build, many layers" {
	PATH=${PATH#"$BUILD/stock:"}
	run_podman version --format '{{.Client.Version}}'
	assert "$output" =~ ^[56] "version of podman"
	import
	run_podman run -d --name con "$AUTO" "$IMAGE" sleep 1000
	range con
	run_podman exec con sh -ec 'echo hi >/new; chown 33:34 /new'
	run_podman mount con
	local m=$output
	run_podman commit -q con localhost/new
	run_podman exec con stat -c %u:%g / /new
	is "$output" $'0:0\n33:34' "owners that the running container sees"
	run_podman run --rm localhost/new stat -c %u:%g / /new /etc/passwd
	is "$output" $'0:0\n33:34\n0:0' "owners in the new image"
	is "$(owner "$m")" "$RANGE:$RANGE" "owner of the running container's root, outside"
	# The container's own mount is where it was.
	is "$(owner "$m/new") $(cat "$m/new")" "$((RANGE + 33)):$((RANGE + 34)) hi" "file of the running container, outside"
	run_podman export -o "$WORK/c.tar" con
	is "$(tar -xOf "$WORK/c.tar" new)" hi "export after a commit"
	run_podman diff con
	assert "$output" =~ 'A /new' "diff of the running container"
	run_podman container inspect --size --format '{{.SizeRw}}' con
	assert "$output" -lt 100000 "size of the container's layer"
	run_podman unmount con
	run_podman stop -t 0 con
	{
		echo "FROM localhost/new"
		for i in {1..30}; do echo "RUN echo $i >/srv/n$i; chown $i:$i /srv/n$i; rm -f /srv/n$((i - 1))"; done
	} >"$WORK/Containerfile"
	COMMAND_TIMEOUT=240 # 30 containers, one after the other
	run_podman build -q --userns=auto:size=65536 -t localhost/many -f "$WORK/Containerfile" "$WORK"
	run_podman run --rm "$AUTO" localhost/many sh -c 'ls /srv; stat -c %u:%g /srv/n30 /new'
	is "$output" $'n30\nshift\n30:30\n33:34' "an image of 32 layers"
}

@test "every engine" {
	local engine
	import
	changed con "$IMAGE"
	run_podman commit -q con localhost/new
	for engine in idmap erofs metacopy copyup; do
		sandbox_engine "$engine"
		look_changed localhost/new "$AUTO"
		run_podman run --name "$engine" "$AUTO" localhost/new sh -ec 'chown 7:8 /srv/shift/user1000; echo more >>/etc/group'
		record "$engine" .engine
		is "$RECORD" "$engine" "engine in the record"
		run_podman commit -q "$engine" "localhost/$engine"
		run_podman run --rm "localhost/$engine" sh -c 'stat -c %u:%g /srv/shift/user1000 /etc/group /etc/passwd; cat /srv/shift/user1000; tail -n 1 /etc/group'
		is "$output" $'7:8\n0:0\n0:0\nof uid 1000\nmore' "commit with $engine"
	done
	sandbox_engine erofs 'erofs_without = "data-only,file,idmap"'
	look_changed localhost/new "$AUTO"
}

@test "what it cannot do goes to fuse-overlayfs" {
	mkdir -p "$WORK/bin" "$WORK/store/overlay"
	printf '#!/bin/sh\necho "called: $*, in $PWD"\n' >"$WORK/bin/fuse-overlayfs"
	chmod 755 "$WORK/bin/fuse-overlayfs"
	cd "$WORK/store/overlay"
	run env PATH="$WORK/bin:$PATH" unshare -r "$PROGRAM" -o lowerdir=a,upperdir=b,workdir=c merged
	is "$status" 0 "exit status"
	is "$output" "called: -o lowerdir=a,upperdir=b,workdir=c merged, in $WORK/store/overlay" "as an ordinary user's"
	run env PATH=/nowhere "$(command -v unshare)" -r "$PROGRAM" -o lowerdir=a,upperdir=b,workdir=c merged
	is "$status" 125 "exit status without fuse-overlayfs"
	assert "$output" =~ 'only root.*fuse-overlayfs could do it, but is not installed' "message"
	run "$PROGRAM" -o upperdir=b merged
	is "$status" 125 "exit status of a call that cannot be understood"
	cd /
}

@test "a container that fuse-overlayfs has written goes on with it" {
	PATH=${PATH#*:} # podman 5: with the old one, fuse-overlayfs shifts twice
	sed -i "s,^mount_program.*,mount_program = \"$(command -v fuse-overlayfs)\"," "$CONTAINERS_STORAGE_CONF"
	import
	run_podman run --name con "$AUTO" "$IMAGE" sh -ec 'test ! -e /new || stat -c %u:%g /new; echo hi >/new; chown 33:34 /new'
	sed -i "s,^mount_program.*,mount_program = \"$PROGRAM\"," "$CONTAINERS_STORAGE_CONF"
	run_podman start -a con
	is "$output" 33:34 "owner of the container's file"
	run_podman run --name other "$AUTO" "$IMAGE" stat -c %u:%g /etc/passwd
	is "$output" 0:0 "a new container"
	record other .engine
	is "$RECORD" "$(expected_engine)" "engine of the new container"
}
