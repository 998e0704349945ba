#!/usr/bin/env bash
# packages.sh: makes $BUILD/packages/shiftoverlay*.deb and .rpm of this tree.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
out=$BUILD/packages root=$BUILD/packages/root
cd "$REPO"
rm -rf "$out"
mkdir -p "$root"
DESTDIR=$root PREFIX=/usr hack/install.sh
(cd tools/pack && GOFLAGS='' CGO_ENABLED=0 go build -trimpath -o "$BUILD/nfpm" github.com/goreleaser/nfpm/v2/cmd/nfpm)
libc=$(ldd --version | sed -nE '1s/.* ([0-9]+\.[0-9]+)$/\1/p')
cat >"$out/nfpm.yaml" <<-END
	name: shiftoverlay
	arch: $(go env GOARCH)
	platform: linux
	version: "$(tree_version)"
	version_schema: none
	section: admin
	priority: optional
	maintainer: shiftoverlay maintainers <maintainers@shiftoverlay.invalid>
	homepage: https://github.com/shiftoverlay/shiftoverlay
	license: Apache-2.0
	description: |
	  Shifted lowers for containers in user namespaces
	  A container with a user namespace of its own sees its image with other owners,
	  at once and without a copy. shiftoverlay-mount gives that to podman, buildah and
	  CRI-O as a mount_program; shiftoverlay shows and manages what is kept.
	contents:
	  - src: $root/
	    dst: /
	    type: tree
	scripts:
	  postinstall: $REPO/contrib/packages/postinstall.sh
	  preremove: $REPO/contrib/packages/preremove.sh
	overrides:
	  deb:
	    depends: ["libc6 (>= $libc)"]
	    suggests: [fuse-overlayfs, podman]
	  rpm:
	    suggests: [fuse-overlayfs, podman]
END
for kind in deb rpm; do "$BUILD/nfpm" package --config "$out/nfpm.yaml" --packager "$kind" --target "$out" >&2; done
rm -rf "$root" "$out/nfpm.yaml"
ls "$out"/*.deb "$out"/*.rpm
