#!/usr/bin/env bash
# suite.sh SUITE DRIVER FILE...: some files of one suite with one driver, in a
# sandbox of its own. run.sh calls it, and says what the arguments are and where
# the logs go. CONF_SHELL=1: a shell in the suite's world instead of the tests.
#
# What is changed in the suites, in copies, all with sed:
# - They know the stock drivers by name and skip what others do not have:
#   `overlay)` and `overlay*)` in their case lists get the name shiftoverlay, as
#   do the few places where the name, or the driver's folder, is spelled out.
# - storage exports _CONTAINERS_OVERLAY_DISABLE_IDMAP, because six tests of
#   idmaps.bats want a driver that cannot shift, and one layer for each mapping.
#   This is taken out: with the kernel's idmapped mounts overlay fails those six,
#   too, and passes the other three.
# - podman keeps --uidmap from hosts with cgroups of version 1 for crun's sake.
#   This is taken out: runc manages.
# - 330-corrupt-images.bats of podman gets the digests of the stand-in image, and
#   the driver in place of vfs.
# - Limits that may not be raised here are left out of default_ulimits.
# Registries are played by `conform registry` with images made of busybox,
# skopeo by buildah's own test helper "copy".
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../sandbox.sh"

dir=$BUILD/conformance bin=$BUILD/conformance/bin
suite=$1 driver=$2
logs=$CONF_LOGS/$suite/$driver
sandbox_enter "$@"
shift 2
# SANDBOX_FS by another name, always the same: buildah's suite folds the path of its
# scratch folder to lower case, and names of podman's tests hold HOME.
work=/var/lib/containers/conformance
tests=$work/tests
mkdir -p "$SANDBOX_FS/conformance" "$work" "$logs"
mount --bind "$SANDBOX_FS/conformance" "$work"
mkdir "$work"/{bin,home,tests,tmp}
chmod 1777 "$work/tmp"
unset CONTAINERS_STORAGE_CONF CONTAINERS_CONF BUILDAH_ISOLATION
export HOME=$work/home TMPDIR=$work/tmp SHIFTOVERLAY_CONF=/etc/containers/shiftoverlay.conf
case $driver in
overlay) export STORAGE_DRIVER=overlay ;;
*)
	export STORAGE_DRIVER=shiftoverlay
	sandbox_engine "$driver"
	;;
esac

# teach FILE...: the driver's name where suites know only those of the stock
# drivers.
teach() {
	sed -i -E \
		-e 's/^([[:space:]]*)([a-z|*]*)overlay\*(\|[a-z|*]*)?\)$/\1\2overlay*|shiftoverlay*\3)/' \
		-e 's/^([[:space:]]*)overlay\)([[:space:]]*;;)?$/\1overlay|shiftoverlay)\2/' "$@"
}

# limits: default_ulimits that can be had without CAP_SYS_RESOURCE.
limits() {
	sandbox_containers_conf | sed -n 's/^default_ulimits = \[\(.*\)\]$/\1/p'
}

# engine_world: settings, images, a registry and tools for podman and buildah.
engine_world() {
	cat >/etc/containers/storage.conf <<-END
		[storage]
		driver = "$STORAGE_DRIVER"
		graphroot = "$work/graph"
		runroot = "$work/runroot"
		[storage.options]
		mountopt = "nodev"
		[storage.options.overlay]
		mountopt = "nodev"
	END
	cat >/etc/containers/containers.conf <<-END
		[containers]
		default_ulimits = [$(limits)]
		[engine]
		cgroup_manager = "cgroupfs"
		events_logger = "file"
		runtime = "runc"
		helper_binaries_dir = ["$bin", "/usr/libexec/podman", "/usr/lib/podman"]
		[engine.runtimes]
		runc = ["$BUILD/runc"]
	END
	printf 'unqualified-search-registries = ["%s"]\n' "$1" >/etc/containers/registries.conf
	: >"$work/registries"
	local host
	for host in quay.io docker.io registry.k8s.io registry.fedoraproject.org; do
		printf '[[registry]]\nprefix = "%s"\nlocation = "127.0.0.1:5000"\ninsecure = true\n' "$host" >>"$work/registries"
	done
	cat "$work/registries" >>/etc/containers/registries.conf
	# One range of the size that buildah's suite reckons with, one for userns=auto.
	printf 'conformance:1000000:65536\ncontainers:2147483647:2147483648\n' >/etc/subuid
	cp /etc/subuid /etc/subgid
	mkdir -p /dev/mqueue
	mountpoint -q /dev/mqueue || mount -t mqueue mqueue /dev/mqueue
	ln -s "$bin"/* "$BUILD"/{podman,buildah,runc} "$work/bin/"
	cat >"$work/bin/skopeo" <<-'END'
		#!/bin/sh
		# skopeo copy [--OPTION...] SOURCE DESTINATION
		[ "$1" = copy ] || { echo "skopeo: not here: $*" >&2; exit 1; }
		shift
		while :; do
			case $1 in
			--*) shift ;;
			*) exec copy "$@" ;;
			esac
		done
	END
	chmod 755 "$work/bin/skopeo"
	export PATH=$work/bin:$PATH
	"$bin/conform" registry -listen 127.0.0.1:5000 "$dir/images/oci" </dev/null >/dev/null 2>&1 &
	disown # else bash tells that it was killed in the end
}

prepare_storage() {
	cp -r "$dir/suites/storage/." "$tests"
	cd "$tests" || exit 1
	teach ./*.bats
	sed -i "s,/root/overlay/,/root/$STORAGE_DRIVER/,g" overlay-recreate.bats
	sed -i "s/^driver=\"overlay\"/driver=\"$STORAGE_DRIVER\"/" apply-diff.bats
	sed -i '/_CONTAINERS_OVERLAY_DISABLE_IDMAP/d' helpers.bash
	export STORAGE_BINARY=$bin/containers-storage
}

prepare_podman() {
	local cache manifest config alpine=$dir/images/oci/quay.io--libpod--alpine--latest
	engine_world quay.io
	cache=$TMPDIR/podman-systest-imagecache-$(id -u)
	cp -r "$dir/images/oci-archive" "$cache"
	cp -r "$dir/suites/podman/." "$tests"
	tests=$tests/system
	cd "$tests" || exit 1
	teach ./*.bats helpers*.bash
	sed -i -e "s/\"\$output\" = \"overlay\"/\"\$output\" = \"$STORAGE_DRIVER\"/" \
		-e '/skip_if_cgroupsv1 "run --uidmap fails/d' ./*.bats
	# The image that is broken in many ways is ours, on the driver under test.
	manifest=$(jq -r '.manifests[0].digest' "$alpine/index.json")
	config=$(jq -r '.config.digest' "$alpine/blobs/${manifest/://}")
	sed -i -E -e "s/(IMAGE_CANONICAL_FQIN=[^@]*@)sha256:.*/\\1$manifest/" -e "s/(IMAGE_ID=)[0-9a-f]{64}/\\1${config#sha256:}/" \
		-e "s/--storage-driver=vfs/--storage-driver=$STORAGE_DRIVER/" -e "s,/root/overlay,/root/$STORAGE_DRIVER," 330-*.bats
	export PODMAN=$BUILD/podman QUADLET=$bin/quadlet PODMAN_TESTING=$bin/podman-testing PODMAN_TIMEOUT=60
}

prepare_buildah() {
	local layout name
	engine_world docker.io
	export _BUILDAH_IMAGE_CACHEDIR=$work/cache
	mkdir "$work/cache"
	for layout in "$dir"/images/oci/*; do
		name=${layout##*/}
		name=${name//--/-}-
		copy "oci:$layout" "dir:$work/cache/$name" >/dev/null || die "cannot copy $layout"
		case $name in *-latest-) ln -s "$name" "$work/cache/${name%-latest-}-" ;; esac
	done
	chmod -R a+rX "$work/cache"
	cp -r "$dir/suites/buildah"/{tests,docs,go.mod} "$tests/"
	ln -s "$work/bin" "$tests/bin"
	tests=$tests/tests
	cd "$tests" || exit 1
	teach ./*.bats
	{ echo 'unqualified-search-registries = ["docker.io", "quay.io"]'; cat "$work/registries"; } >registries.conf
	case $(limits) in *nproc=*)
		sed -i "s/^default_ulimits = \[/& \"nproc=$(ulimit -Hu):$(ulimit -Hu)\",/" containers.conf
		;;
	esac
	export BUILDAH_ISOLATION=oci BUILDAH_RUNTIME=$BUILD/runc PODMAN_BINARY=$BUILD/podman BUILDAH_TIMEOUT=120
}

# settle: wait until podman has removed the containers of the file before, which
# it goes on doing in the background. podman's setup_suite fails when a container
# goes while it removes it.
settle() {
	local left i
	[ "$suite" = podman ] || return 0
	for ((i = 0; i < 30; i++)); do
		left=$("$BUILD/podman" ps -aq --external) || return 0
		[ -n "$left" ] || return 0
		sleep 0.5
		# shellcheck disable=SC2086 # ids
		[ "$i" -lt 6 ] || "$BUILD/podman" rm -f -t 0 $left >/dev/null 2>&1
	done
}

# bats_run LOG FILE [ARGUMENT...]
bats_run() {
	local log=$1 f=$2
	shift 2
	settle
	timeout -k 20 "$CONF_LIMIT" bats --tap --timing "$@" "$f" >"$log" 2>&1 </dev/null
	[ $? -ne 124 ] || echo "# ended after $CONF_LIMIT s" >>"$log"
}

# bats_file FILE: into LOG; what passes with overlay and did not here gets a
# second try. A file whose tests did not begin is run again with every driver.
bats_file() {
	local f=$1 log=$logs/$1.tap start=$SECONDS args=()
	[ "$suite/$f" != buildah/bud.bats ] || args=(--filter "$CONF_BUD")
	[ -z "${CONF_FILTER:-}" ] || args=(--filter "$CONF_FILTER")
	rm -rf "${log%.tap}".{tap,again} .bats
	mkdir -p .bats/run-logs # for --filter-status
	bats_run "$log.part" "$f" "${args[@]}"
	if grep -Eq '^not ok 1 setup_(suite|file)' "$log.part"; then
		say "$suite/$f with $driver: its setup failed; once more"
		bats_run "$log.part" "$f" "${args[@]}"
	fi
	mv "$log.part" "$log"
	if [ "$driver" != overlay ] && [ -e "$CONF_LOGS/$suite/overlay/$f.tap" ] &&
		! "$bin/conform" worse "$CONF_LOGS/$suite/overlay/$f.tap" "$log" >/dev/null; then
		say "$suite/$f with $driver: second try of what failed"
		bats_run "${log%.tap}.again" "$f" "${args[@]}" --filter-status failed
	fi
	say "$suite/$f with $driver: $("$bin/conform" count "$log") ($((SECONDS - start)) s)"
}

# graphtest_fs TYPE: the Go tests on a new file system, as TAP.
graphtest_fs() {
	local log=$logs/$1.tap fs=$SANDBOX/graphtest
	sandbox_disk "$SANDBOX/graphtest.img" "$fs" 8G "$1" >/dev/null
	TMPDIR=$fs "$bin/graphtest" -test.v -test.timeout "${CONF_LIMIT}s" >"$logs/$1.log" 2>&1
	awk '
		/^=== RUN +TestDriver\// { name[++n] = substr($3, 12) }
		/^ +--- (PASS|FAIL|SKIP): TestDriver\// { state[substr($3, 12)] = $2 }
		END {
			for (i = 1; i <= n; i++) {
				s = state[name[i]]
				print (s == "PASS:" || s == "SKIP:" ? "ok " : "not ok ") i " " name[i] (s == "SKIP:" ? " # skip" : "")
			}
			print "1.." (n ? n : 1)
		}' "$logs/$1.log" >"$log"
	umount -R "$fs" || umount -R -l "$fs"
	rm -f "$SANDBOX/graphtest.img"
	say "graphtest/$1 with $driver: $("$bin/conform" count "$log")"
}

if [ "$suite" = graphtest ]; then
	for fs; do graphtest_fs "$fs"; done
	exit
fi
"prepare_$suite"
if [ -n "${CONF_SHELL:-}" ]; then
	bash -i
	exit
fi
for f; do bats_file "$f"; done
