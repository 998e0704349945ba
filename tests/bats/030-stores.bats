#!/usr/bin/env bats
# Images in additional, read-only image stores.

load helpers

MAP=(--uidmap=0:100000:65536 --gidmap=0:200000:65536)

# provide DRIVER: a read-only store $STORE that DRIVER wrote, with an image of one
# layer and localhost/two of two; and the test's own store, which adds it.
provide() {
	use_store ais "$1"
	import
	run_podman run --name one "$IMAGE" sh -c 'echo hi >/one; chown 1000:1000 /one; rm /srv/shift/empty; chmod 4755 /srv/shift/link1'
	run_podman commit -q one localhost/two
	run_podman rm one
	STORE=$GRAPH
	forget_boot
	mount --bind "$STORE" "$STORE"
	mount -o remount,bind,ro "$STORE"
	use_store s shiftoverlay
	printf '[storage.options]\nadditionalimagestores = ["%s"]\n' "$STORE" >>"$CONTAINERS_STORAGE_CONF"
}

# withdraw: remove what was made from the additional store, and that store's
# configuration, so that teardown can clean both.
withdraw() {
	run_podman rm -f -t 0 -a
	local engine made=0
	for engine in $ENGINES; do
		run_podman rmi "localhost/$engine"
		[ "$engine" = idmap ] || made=$((made + 1))
	done
	# Shifted lowers of images that are not ours to remove stay, to be used again.
	status_row 'Shift cache entries'
	is "$output" "$made" "entries after all containers are gone"
	rm -rf "$GRAPH/shiftoverlay-shifted"
	use_store s shiftoverlay
	umount "$STORE"
	forget_boot
}

check_store() {
	provide "$1"
	local before engine entries=0
	before=$(find "$STORE" -printf '%P %m %U:%G %s %T@\n' | sort)
	for engine in $ENGINES; do
		sandbox_engine "$engine"
		[ "$engine" = idmap ] || entries=$((entries + 1))
		run_podman run --rm localhost/two stat -c %u:%g:%a /one /etc/passwd /srv/shift/link1
		is "$output" $'1000:1000:644\n0:0:644\n0:0:4755' "engine $engine: without a mapping"
		local i
		for i in first second; do
			run_podman run --rm "${MAP[@]}" localhost/two sh -c 'stat -c %u:%g:%a /one /etc/passwd /srv/shift/link1; cat /one; test -e /srv/shift/empty || echo gone'
			is "$output" $'1000:1000:644\n0:0:644\n0:0:4755\nhi\ngone' "engine $engine: the $i container"
			status_row 'Shift cache entries'
			is "$output" "$entries" "engine $engine: entries after the $i container"
		done
		run_podman run --name "$engine" "${MAP[@]}" localhost/two sh -c 'echo new >/new; chown 33:34 /new; rm /one'
		run_podman commit -q "$engine" "localhost/$engine"
		run_podman run --rm "localhost/$engine" sh -c 'stat -c %u:%g /new /srv/shift/user1000; test -e /one || echo gone'
		is "$output" $'33:34\n1000:1000\ngone' "engine $engine: an image made from the store's"
	done
	is "$(find "$STORE" -printf '%P %m %U:%G %s %T@\n' | sort)" "$before" "the additional store"
	withdraw
}

@test "an additional image store of this driver" {
	check_store shiftoverlay
}

@test "an additional image store of plain overlay" {
	check_store overlay
}

@test "an additional image store that is not there is named" {
	printf '[storage.options]\nadditionalimagestores = ["%s"]\n' "$WORK/nowhere" >>"$CONTAINERS_STORAGE_CONF"
	capture podman images
	assert "$status" -ne 0 "exit status"
	assert "$output" =~ "$WORK/nowhere" "message"
	sed -i '/^\[storage.options\]/,$d' "$CONTAINERS_STORAGE_CONF"
	run_podman images -q
}

@test "a separate image store" {
	sed -i "s|^runroot = .*|&\nimagestore = \"$WORK/images\"|" "$CONTAINERS_STORAGE_CONF"
	import
	[ -d "$WORK/images/shiftoverlay" ] || die "no images in $WORK/images"
	local engine
	for engine in $ENGINES; do
		sandbox_engine "$engine"
		run_podman run --name "$engine" "${MAP[@]}" "$IMAGE" sh -c 'stat -c %u:%g /etc/passwd /srv/shift/user1000; echo new >/new; chown 33:34 /new'
		is "$output" $'0:0\n1000:1000' "engine $engine: owners"
		run_podman commit -q "$engine" "localhost/$engine"
		run_podman run --rm "${MAP[@]}" "localhost/$engine" stat -c %u:%g /new /srv/shift/user1000
		is "$output" $'33:34\n1000:1000' "engine $engine: owners in the new image"
	done
	run_podman rm -f -t 0 -a
	run_podman rmi -f -a # clean_store looks for images in the graph root only
	# Overlay forgets the symbolic links in l/ of a separate image store.
	is "$(leftovers "$WORK/images" "$EMPTY_STORE" shiftoverlay | grep -v '^shiftoverlay/l/' || true)" '' "files left behind in the image store"
	sed -i '/^imagestore/d' "$CONTAINERS_STORAGE_CONF"
	forget_boot
}
