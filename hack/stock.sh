#!/usr/bin/env bash
# stock.sh: the distribution's own podman and buildah, unmodified, unpacked below
# $BUILD/stock. They are not installed, but libraries that they lack are. They
# serve to try shiftoverlay-mount with programs that know nothing of the driver.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need apt-get dpkg-deb

stock=$BUILD/stock
if [ -x "$stock/podman" ] && [ -x "$stock/buildah" ]; then
	say "the distribution's podman and buildah are there: $("$stock/podman" --version), $("$stock/buildah" --version)"
	exit
fi
rm -rf "$stock"
mkdir -p "$stock/packages"
cd "$stock/packages"
fetch() { apt-get -q download podman buildah </dev/null >"$stock/log" 2>&1; }
if ! fetch; then
	apt-get -q update </dev/null >&2
	fetch || die "apt-get download podman buildah failed: $(cat "$stock/log")"
fi
for p in *.deb; do dpkg-deb -x "$p" "$stock/root"; done
cd "$stock"
lacking() { ldd root/usr/bin/podman root/usr/bin/buildah | grep 'not found' || true; }
if [ -n "$(lacking)" ]; then
	mapfile -t libraries < <(for p in packages/*.deb; do dpkg-deb -f "$p" Depends | tr ',' '\n' | sed -nE 's/^ *(lib[^ (|]*).*/\1/p'; done | sort -u)
	install_packages "${libraries[@]}"
fi
[ -z "$(lacking)" ] || die "the distribution's podman and buildah lack libraries: $(lacking)"
mv root/usr/bin/{podman,buildah} .
rm -rf packages root
for tool in podman buildah; do
	say "unpacked $("$stock/$tool" --version): $stock/$tool"
done
