#!/usr/bin/env bats
# What README.md and docs/guide.md tell people to type is carried out, block by
# block (hack/doc-commands.awk says what a block is), on a machine that has a store of overlay;
# a command that fails, fails the test. tests/doc-exceptions lists what cannot be
# carried out here. Commands that are only mentioned are asked whether they exist.

load helpers

COMMAND_TIMEOUT=600

# storage.conf and the store are at their usual places.
setup() {
	basic_setup
	unset CONTAINERS_STORAGE_CONF SHIFTOVERLAY_CONF
}

teardown() {
	if [ -e /etc/containers/storage.conf ]; then
		run_podman rm -f -t 0 -a
		run_podman rmi -f -a
		rm -f /etc/containers/storage.conf
	fi
	use_store s shiftoverlay
	basic_teardown
}

# machine: a store of overlay, with an image that no registry can give here, and
# the line in storage.conf that README.md shows.
machine() {
	rm -rf /etc/containers/storage.conf /var/lib/containers/storage /run/containers
	storage_conf overlay
	run_podman import -q "$BUILD/images/busybox.tar" docker.io/library/busybox
	run_podman create --name before docker.io/library/busybox true
	storage_conf shiftoverlay
}

# storage_conf DRIVER: the usual file.
storage_conf() {
	cat >/etc/containers/storage.conf <<-END
		[storage]
		driver = "$1"
		runroot = "/run/containers/storage"
		graphroot = "/var/lib/containers/storage"
	END
}

# follow FILE: carry out all blocks of a file.
follow() {
	local block line
	rm -rf "$WORK/blocks"
	mkdir "$WORK/blocks"
	awk -v out="$WORK/blocks" -f "$REPO/hack/doc-commands.awk" "$1" >"$WORK/mentioned"
	for block in "$WORK"/blocks/*.sh; do
		[ -e "$block" ] || die "no block of commands in $1"
		while IFS= read -r line; do
			except "$line" || printf '%s\n' "$line"
		done <"$block" >"$block.run"
		# The shell's own trace says which command fails. Questions are answered with yes.
		# A demo makes a sandbox of its own; a small one will do.
		capture env -C "$REPO" -u SANDBOX_INSIDE ROUNDS=1 IMAGES=minbase bash -c 'yes 2>/dev/null | bash -euxo pipefail "$0"; exit "${PIPESTATUS[1]}"' "$block.run"
		printf '%s\n' "$output"
		is "$status" 0 "exit status of the block ${block##*/} of $1, of which the last line above with a + failed" || return
	done
}

# except LINE: is it in tests/doc-exceptions?
except() {
	local line
	line=$(sed -E 's/ +# .*$//; s/ +$//' <<<"$1")
	[ -n "$line" ] && grep -qF -- "$line -- " <(grep -v '^#' "$REPO/tests/doc-exceptions" | awk -v l="$line -- " 'index($0, l) == 1')
}

# mentioned: the commands in the text exist, with the options that are named.
mentioned() {
	local words
	[ -s "$WORK/mentioned" ] || die "no command is mentioned"
	while read -r -a words; do
		case ${words[0]} in
		make) capture make -n -C "$REPO" "${words[@]:1}" ;;
		*) capture "${words[@]}" --help ;;
		esac
		[ "$status" -eq 0 ] || die "${words[*]}: exit status $status: $output" || return
		assert "$output" !~ 'unknown (flag|shorthand|command)|unrecognized command' "${words[*]}" || return
	done <"$WORK/mentioned"
}

@test "the commands of README.md and of the guide" {
	local file
	for file in README.md docs/guide.md; do
		[ "$file" = README.md ] || [ -e "$REPO/$file" ] || continue
		machine
		follow "$REPO/$file"
		mentioned
		run_podman start before
		run_podman info --format '{{.Store.GraphDriverName}}'
		is "$output" shiftoverlay "driver after all of $file"
	done
}

@test "a block that fails is noticed, and exceptions are exact" {
	printf 'Text.\n\n```sh\ntrue\nfalse # no\ntrue\n```\n' >"$WORK/bad.md"
	run follow "$WORK/bad.md"
	assert "$status" -ne 0 "exit status"
	assert "$output" =~ '\+ false' "which command"
	printf '```console\n$ test x = x\nfalse\n```\n\n  ```sh\n  cat <<END\n  here\n  END\n  ```\nSee `make no-such-target` and `podman run -d`.\n' >"$WORK/good.md"
	follow "$WORK/good.md"
	is "$output" "+ cat
here" "output of the last block"
	is "$(cat "$WORK/mentioned")" $'make no-such-target\npodman run -d' "what is mentioned"
	run mentioned
	assert "$status" -ne 0 "exit status for a target that does not exist"
	except 'make test     # sets everything up' || die "not an exception"
	! except 'make tests' || die "an exception"
	! except '' || die "an exception"
	# Every exception is in one of the files, and has a reason.
	local line
	grep -v '^#' "$REPO/tests/doc-exceptions" | while IFS= read -r line; do
		grep -qF -- "${line%% -- *}" "$REPO/README.md" "$REPO/docs/"*.md || die "not in any file: $line"
		assert "${line#* -- }" =~ ' ' "a reason in: $line"
	done
}
