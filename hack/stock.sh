#!/usr/bin/env bash
# stock.sh: the distribution's own podman and buildah, unmodified, unpacked below
# $BUILD/stock; nothing is installed. They serve to try shiftoverlay-mount with
# programs that know nothing of the driver.
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
cd "$REPO"
cp "$stock"/root/usr/bin/{podman,buildah} "$stock/"
rm -rf "$stock/packages"
for tool in podman buildah; do
	! lacking=$(ldd "$stock/$tool" | grep "not found") || die "the distribution's $tool lacks libraries: $lacking"
	say "unpacked $("$stock/$tool" --version): $stock/$tool"
done
