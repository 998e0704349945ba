#!/usr/bin/env bats
# Proof that the tests can fail: what plain overlay does with the same steps.

load helpers

AUTO=--userns=auto:size=65536

@test "control: plain overlay with idmapped mounts commits host IDs" {
	use_store o overlay
	import
	run_podman info --format '{{index .Store.GraphStatus "Supports shifting"}}'
	[ "$output" = true ] || skip "overlay has no idmapped mounts here"
	run_podman run -d --name con "$AUTO" "$IMAGE" sleep 1000
	range con
	run_podman exec con sh -c 'touch /newfile && chown 33:33 /newfile && cp /usr/local/bin/whoami-plain /capfile'
	in_userns con setcap cap_net_bind_service+ep capfile
	run_podman stop -t 0 con
	run_podman commit -q con localhost/new
	run_podman run --rm localhost/new sh -c 'stat -c %u:%g /newfile /etc/passwd; su user -c /capfile'
	is "${lines[0]}" "$((RANGE + 33)):$((RANGE + 33))" "owner in the new image"
	is "${lines[1]}" 0:0 "owner of a file that was not touched"
	layer_of localhost/new
	is "$(xattr_size "$UPPER/capfile" security.capability)" 24 "bytes of the capability (version 3, bound to the container's range)"
	assert "${lines[2]}" !~ 'capeff=0000000000000400' "the program with the capability"
}

@test "control: the leak check finds mounts, processes, loop devices and files" {
	import
	leak_check || true
	mkdir "$WORK/m"
	mount -t tmpfs leak "$WORK/m"
	run leak_check
	assert "$output" =~ "mounts that the test left behind"'.*'"$WORK/m" "a mount"
	umount "$WORK/m"
	(setsid sleep 1000 3>&- >/dev/null 2>&1 &)
	local i
	for ((i = 0; i < 100; i++)); do
		run strangers
		[[ $output != *'sleep 1000'* ]] || break
		sleep 0.1
	done
	assert "$output" =~ 'sleep 1000' "a process"
	kill "$(cut -d' ' -f1 <<<"$output")"
	truncate -s 1M "$WORK/loop.img"
	local dev
	dev=$(losetup --find --show "$WORK/loop.img")
	run leak_check
	losetup -d "$dev"
	assert "$output" =~ 'loop devices' "a loop device"
	# The image is still there, and that is a leak, too.
	assert "$output" =~ 'graph root of store s'.*/diff "files"
	run_podman rmi -a
	leak_check
}

@test "control: messages at warning level and wrong exit statuses fail a test" {
	run run_logged bash -c 'echo "time=now level=warning msg=x"'
	assert "$status" -ne 0 "a command that warns"
	run run_logged bash -c 'exit 3'
	assert "$status" -ne 0 "a command that fails"
	run run_logged bash 3 -c 'exit 3'
	assert "$status" -eq 0 "a command that fails as expected"
	run run_logged bash 3 -c 'true'
	assert "$status" -ne 0 "a command that should fail"
	run run_logged bash -c 'echo fine'
	assert "$status" -eq 0 "a command that works"
	run run_logged echo --name=c
	assert "$status" -ne 0 "a container's name of hexadecimal digits only"
	run run_logged echo --name con
	assert "$status" -eq 0 "a container's name that is no ID"
	run is a b what
	assert "$status" -ne 0 "is"
	run assert a =~ b what
	assert "$status" -ne 0 "assert =~"
	run assert a !~ a what
	assert "$status" -ne 0 "assert !~"
	run assert 1 -gt 2 what
	assert "$status" -ne 0 "assert -gt"
	run same_text a b what
	assert "$status" -ne 0 "same_text"
	run same_text '' '' what
	assert "$status" -ne 0 "same_text of nothing"
}
