#!/usr/bin/env bats
# Images are built in containers: podman build and buildah, with and without
# mappings. Run for each engine, see helpers.bash.

load helpers

AUTO=--userns=auto:size=65536
# buildah gives its mount points to the group with the number of the mapped root
# user, so the groups' ranges have to be the users'.
MAP=(--userns-uid-map=0:200000:40000 --userns-uid-map=40000:300000:25536
	--userns-gid-map=0:200000:40000 --userns-gid-map=40000:300000:25536)
# In several pieces, the library does not leave it to a mount program.
[ -z "$PROGRAM" ] || MAP=(--userns-uid-map=0:200000:65536 --userns-gid-map=0:200000:65536)

# context: a build context in $WORK/context, with a Containerfile that does much.
context() {
	mkdir -p "$WORK/context"
	echo data >"$WORK/context/file"
	chmod 640 "$WORK/context/file"
	cat >"$WORK/context/Containerfile" <<-END
		FROM $IMAGE AS first
		RUN mkdir /made && echo one >/made/one && chown 33:34 /made/one && chmod 4755 /made/one && rm /srv/shift/empty
		RUN echo two >/made/two && chown 1000:1000 /made/two && mv /made /moved

		FROM $IMAGE
		COPY --from=first /moved /moved
		COPY --chown=7:8 file /copied
		RUN stat -c %n:%u:%g /moved/one /moved/two /copied /etc/passwd >/seen && ln /copied /linked && chmod 600 /srv/shift/link1 && rm /srv/shift/nobody
		WORKDIR /srv/shift
		USER 1000:1000
		RUN id -u >/tmp/whoami && cat /srv/shift/user1000 >>/tmp/whoami
	END
}

# check_built NAME RUN-OPTIONS...: a container of the built image has it all.
check_built() {
	local name=$1
	shift
	run_podman run --rm "$@" "$name" sh -c 'pwd; id -u; cat /tmp/whoami; stat -c %n:%u:%g:%a /moved/one /moved/two /copied /linked /tmp/whoami link1 user1000; test -e nobody || echo gone; cat empty /seen'
	is "$output" "$(cat <<-END
		/srv/shift
		1000
		1000
		of uid 1000
		/moved/one:33:34:4755
		/moved/two:1000:1000:644
		/copied:7:8:640
		/linked:7:8:640
		/tmp/whoami:1000:1000:644
		link1:0:0:600
		user1000:1000:1000:640
		gone
		/moved/one:33:34
		/moved/two:1000:1000
		/copied:7:8
		/etc/passwd:0:0
	END
	)" "$name, run with $*"
}

@test "podman build --userns=auto" {
	import
	context
	run_podman build -q --userns=auto:size=65536 -t localhost/built "$WORK/context"
	check_built localhost/built
	check_built localhost/built "$AUTO"
}

@test "podman build --userns-uid-map, with cache and squashed" {
	import
	context
	run_podman build -q --layers "${MAP[@]}" -t localhost/built "$WORK/context"
	local first=$output base
	check_built localhost/built --uidmap=0:200000:65536 --gidmap=0:400000:65536
	run_podman image inspect --format '{{index .RootFS.Layers 0}}' "$IMAGE"
	base=$output
	run_podman image inspect --format '{{index .RootFS.Layers 0}}' localhost/built
	is "$output" "$base" "the base image's layer in the new image"
	run_podman build --layers "${MAP[@]}" -t localhost/again "$WORK/context"
	is "$(grep -c 'Using cache' <<<"$output")" 8 "steps from the cache"
	is "$(tail -n 1 <<<"$output")" "$first" "the second image"
	run_podman build -q --squash "${MAP[@]}" -t localhost/squashed "$WORK/context"
	run_podman image inspect --format '{{len .RootFS.Layers}}' localhost/squashed
	is "$output" 2 "layers of the squashed image"
	check_built localhost/squashed "$AUTO"
}

@test "buildah from, copy, run, commit" {
	import
	context
	run_buildah from --pull-never --name w "${MAP[@]}" "$IMAGE"
	run_buildah copy --chown 7:8 w "$WORK/context/file" /copied
	run_buildah run w -- sh -c 'stat -c %u:%g /copied /etc/passwd /srv/shift/user1000; echo new >/new; chown 33:34 /new; rm /srv/shift/empty'
	is "$output" $'7:8\n0:0\n1000:1000' "owners inside"
	run_buildah mount w
	is "$(owner "$output/new") $(owner "$output/copied") $(owner "$output/etc/passwd")" '200033:200034 200007:200008 200000:200000' "owners outside"
	run_buildah umount w
	run_buildah commit -q w localhost/built
	run_buildah rm w
	run_podman run --rm localhost/built stat -c %u:%g /new /copied /etc/passwd /srv/shift/user1000
	is "$output" $'33:34\n7:8\n0:0\n1000:1000' "owners in the image"
	layer_of localhost/built
	is "$(cd "$UPPER" && find . ! -path './etc*' ! -path './run*' ! -path './proc*' ! -path './dev*' ! -path './sys*' | sort | tr '\n' ' ')" \
		'. ./copied ./new ./srv ./srv/shift ./srv/shift/empty ' "content of the new layer"
	[ -c "$UPPER/srv/shift/empty" ] || die "the deleted file is no whiteout in the new layer"
}

@test "what RUN writes to a VOLUME" {
	import
	mkdir "$WORK/context"
	cat >"$WORK/context/Containerfile" <<-END
		FROM $IMAGE
		RUN mkdir /vol && echo kept >/vol/kept && chown -R 33:34 /vol
		VOLUME /vol
		RUN echo late >/vol/late; rm /vol/kept; echo out >/out
	END
	run_podman build -q "${MAP[@]}" -t localhost/built "$WORK/context"
	if [ -n "$PROGRAM" ] && [ "$PROGRAM_TOOLS" = stock ]; then # podman 4 always does what podman 5 does with --compat-volumes
		run_podman run --rm "$AUTO" localhost/built sh -c 'ls /vol; stat -c %u:%g /vol /vol/kept; cat /out'
		is "$output" $'kept\n33:34\n33:34\nout' "the volume"
		return
	fi
	run_podman run --rm "$AUTO" localhost/built sh -c 'ls /vol; stat -c %u:%g /vol /vol/late; cat /out'
	is "$output" $'late\n33:34\n0:0\nout' "the volume"
	run_podman build -q --no-cache --compat-volumes "${MAP[@]}" -t localhost/compat "$WORK/context"
	run_podman run --rm "$AUTO" localhost/compat sh -c 'ls /vol; stat -c %u:%g /vol /vol/kept; cat /out'
	is "$output" $'kept\n33:34\n33:34\nout' "the volume with --compat-volumes"
}
