#!/usr/bin/env bash
# build.sh: what run.sh needs beside podman, buildah and runc, from the same Go
# modules and with the driver compiled in where it matters, into
# $BUILD/conformance/bin; and the suites, copied out of the module cache into
# $BUILD/conformance/suites. Variables: those of hack/build-tools.sh.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

DRIVER=github.com/shiftoverlay/shiftoverlay
TAGS='containers_image_openpgp exclude_graphdriver_btrfs seccomp systemd'
dir=$BUILD/conformance bin=$BUILD/conformance/bin
log=$dir/build.log
need go tar flock
mkdir -p "$bin" "$dir/suites"
# Else Go takes the suites' files for ours where $BUILD is in the repository.
printf 'module suites.invalid\n' >"$dir/suites/go.mod"
: >"$log"
unset GOOS GOARCH GOWORK

"$REPO/hack/build-tools.sh" runc podman buildah
read -r podman_version _ <"$BUILD/.podman.stamp"
read -r buildah_version _ <"$BUILD/.buildah.stamp"
storage_version=$(cd "$REPO" && go list -m -f '{{.Version}}' github.com/containers/storage)

# module PATH VERSION: its folder in the module cache.
module() {
	local from
	from=$(cd "$dir" && GOFLAGS='' go mod download -json "$1@$2" | sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p')
	[ -d "$from" ] || die "no module $1@$2; is the Go module proxy reachable?"
	printf '%s\n' "$from"
}

# copy FROM TO: a folder that can be written to, without vendored modules.
copy() {
	rm -rf "$2"
	mkdir -p "$2"
	tar -C "$1" --exclude=./vendor -cf - . | tar -C "$2" -xf -
	chmod -R u+w "$2"
}

# compile TREE NAME PACKAGE: with the driver, if the package is one that opens
# a store.
compile() {
	say "building $2 (log: $log)"
	case $3 in
	./cmd/quadlet | ./cmd/rootlessport | ./tests/inet | ./tests/passwd | ./tests/dumpspec) ;;
	*) printf 'package main\n\nimport _ "%s"\n' "$DRIVER/drivers/shiftoverlay" >"$1/$3/zz_shiftoverlay.go" ;;
	esac
	GOFLAGS=-mod=mod CGO_ENABLED=1 go build -C "$1" -buildvcs=false -trimpath -tags "$TAGS" \
		-ldflags '-s -w' -o "$bin/$2" "$3" >>"$log" 2>&1 ||
		{ tail -n 30 "$log" >&2; die "$2 does not build"; }
}

storage=$(module github.com/containers/storage "$storage_version")
podman=$(module github.com/containers/podman/v5 "$podman_version")
buildah=$(module github.com/containers/buildah "$buildah_version")

# hack/build-tools.sh left trees of podman and buildah whose go.mod has the
# driver. Storage's own program gets one here.
tree=$BUILD/src/storage-$storage_version
if [ ! -e "$tree/.complete" ]; then
	copy "$storage" "$tree"
	cp "$tree/go.mod" "$tree/.go.mod.orig"
	cp "$tree/go.sum" "$tree/.go.sum.orig"
	touch "$tree/.complete"
fi
cp "$tree/.go.mod.orig" "$tree/go.mod"
cat "$tree/.go.sum.orig" "$REPO/go.sum" >"$tree/go.sum"
go -C "$tree" mod edit -require="$DRIVER@v0.0.0" -replace="$DRIVER=$REPO"
compile "$tree" containers-storage ./cmd/containers-storage

(
	flock 9
	for cmd in quadlet rootlessport podman-testing; do
		compile "$BUILD/src/podman-$podman_version" "$cmd" "./cmd/$cmd"
	done
) 9>"$BUILD/src/.podman.lock"
(
	flock 9
	for cmd in copy imgtype inet passwd dumpspec; do
		compile "$BUILD/src/buildah-$buildah_version" "$cmd" "./tests/$cmd"
	done
) 9>"$BUILD/src/.buildah.lock"

say 'building conform and graphtest'
GOFLAGS='' CGO_ENABLED=0 go build -C "$REPO/tools/conform" -trimpath -o "$bin/conform" .
GOFLAGS='' go test -C "$REPO" -trimpath -tags "${TAGS// /,},conformance" -c -o "$bin/graphtest" ./hack/conformance/graphtest

copy "$storage/tests" "$dir/suites/storage"
copy "$podman/test" "$dir/suites/podman"
copy "$buildah" "$dir/suites/buildah"
rm -rf "$dir/images"
"$bin/conform" images "$dir/images"
printf 'containers/storage %s, podman %s, buildah %s' "$storage_version" "$podman_version" "$buildah_version" >"$dir/versions"
