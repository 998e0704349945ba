#!/usr/bin/env bats
# Containers without a mapping, and how they get on with others in one store.

load helpers

AUTO=--userns=auto:size=65536

@test "plain: stop, start, cp, exec, diff, commit" {
	import
	run_podman run -d --name con "$IMAGE" sleep 1000
	run_podman exec con sh -c 'echo hi >/new; chown 33:34 /new; rm -rf /srv/shift/secret; mv /srv/shift/setgid /srv/moved'
	run_podman cp con:/new "$WORK/out"
	is "$(cat "$WORK/out")" hi "copied out"
	run_podman restart -t 0 con
	run_podman exec con stat -c %u:%g /new /srv/moved
	is "$output" $'33:34\n1000:1000' "owners after a restart"
	run_podman diff con
	is "$(grep -v '^C /etc$' <<<"$output" | sort -k2)" $'A /new\nC /srv\nA /srv/moved\nC /srv/shift\nD /srv/shift/secret\nD /srv/shift/setgid' "podman diff"
	run_podman commit -q con localhost/new
	run_podman run --rm localhost/new sh -c 'stat -c %u:%g:%a /new /srv/moved; ls -d /srv/shift/se* 2>/dev/null; true'
	is "$output" $'33:34:644\n1000:1000:2775' "the new image"
	[ ! -e "$GRAPH/shiftoverlay-shifted" ] || die "a cache was made for nothing"
}

@test "plain: podman build, several stages" {
	import
	mkdir "$WORK/context"
	echo data >"$WORK/context/file"
	cat >"$WORK/context/Containerfile" <<-END
		FROM $IMAGE AS first
		RUN echo one >/one && chown 33:34 /one && mv /srv/shift /srv/moved
		RUN rm /srv/moved/empty
		FROM $IMAGE
		COPY --from=first /one /srv/moved/link1 /from/
		COPY --chown=7:8 file /copied
		USER 1000
		RUN id -u >/tmp/id
	END
	run_podman build -q -t localhost/built "$WORK/context"
	local userns
	for userns in --userns=host "$AUTO"; do
		run_podman run --rm "$userns" localhost/built stat -c %n:%u:%g /from/one /from/link1 /copied /tmp/id
		is "$output" $'/from/one:33:34\n/from/link1:0:0\n/copied:7:8\n/tmp/id:1000:1000' "owners with $userns"
	done
}

@test "plain: an overlay volume" {
	import
	mkdir "$WORK/over"
	echo data >"$WORK/over/file"
	run_podman run --rm -v "$WORK/over:/vol:O" "$IMAGE" sh -c 'cat /vol/file; echo new >/vol/new; rm -f /vol/file; ls /vol'
	is "$output" $'data\nnew' "inside"
	is "$(ls "$WORK/over")" file "outside"
}

@test "plain and mapped containers of one image live side by side" {
	import
	run_podman run -d --name plain "$IMAGE" sleep 1000
	run_podman run -d --name mapped "$AUTO" "$IMAGE" sleep 1000
	sandbox_engine metacopy
	run_podman run -d --name other "$AUTO" "$IMAGE" sleep 1000
	sandbox_engine copyup
	run_podman run -d --name fourth "$AUTO" "$IMAGE" sleep 1000
	local c
	for c in plain mapped other fourth; do
		run_podman exec "$c" sh -c "echo $c >>/etc/group; tail -n 1 /etc/group; stat -c %u:%g /etc/group /srv/shift/user1000"
		is "$output" "$c"$'\n0:0\n1000:1000' "container $c"
	done
	sandbox_engine auto
	run_podman restart -t 0 plain mapped other fourth
	for c in plain mapped other fourth; do
		run_podman exec "$c" sh -c 'tail -n 1 /etc/group; stat -c %u:%g /etc/group /srv/shift/user1000'
		is "$output" "$c"$'\n0:0\n1000:1000' "container $c after a restart with another engine"
	done
	run_podman stop -t 0 -a
	run_podman rmi -f "$IMAGE"
	run_podman ps -a -q
	is "$output" '' "containers after rmi -f"
}

@test "plain: an image as a volume" {
	import
	run_podman run --rm --mount "type=image,source=$IMAGE,destination=/img,rw=false" "$IMAGE" stat -c %u:%g /img/etc/passwd /img/srv/shift/user1000
	is "$output" $'0:0\n1000:1000' "inside"
	run_podman image mount "$IMAGE"
	is "$(owner "$output/srv/shift/user1000")" 1000:1000 "podman image mount"
	run_podman image unmount "$IMAGE"
}

@test "privileged containers" {
	import
	local userns
	for userns in --userns=host "$AUTO"; do
		run_podman run --rm --privileged "$userns" "$IMAGE" stat -c %u:%g /etc/passwd /srv/shift/user1000
		is "$output" $'0:0\n1000:1000' "owners with $userns"
	done
}
