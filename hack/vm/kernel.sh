#!/usr/bin/env bash
# kernel.sh SERIES|newest: fetches the newest kernel that Debian serves of a
# series (5.10, 6.1, 6.12...), unpacks it to $VM/kernels/VERSION with vmlinuz and
# initrd.img at its top, and prints that folder. The cloud flavour: small, and
# everything that the tests need is in it.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
series=${1:?usage: kernel.sh SERIES}
export APT_CONFIG=$VM/apt/apt.conf

# served: every cloud kernel in the lists: package's version, package.
served() {
	local names
	mapfile -t names < <(apt-cache search --names-only '^linux-image-[0-9].*-cloud-amd64$' | cut -d' ' -f1)
	[ ${#names[@]} -gt 0 ] || return 0
	apt-cache madison "${names[@]}" | awk -F ' *[|] *' '{ gsub(/ /, "", $1); print $2, $1 }' | sort -V
}

case $series in
newest) line=$(served | tail -n 1) ;;
*) line=$(served | grep -E "^${series//./\\.}[.-]" | tail -n 1 || true) ;;
esac
[ -n "$line" ] || die "Debian serves no cloud kernel $series any more"
package=${line##* } release=${package#linux-image-}
dir=$VM/kernels/$release
stamp="$line $(sha256sum <"$REPO/hack/vm/initrd.sh")"
if [ "$(cat "$dir/.stamp" 2>/dev/null)" != "$stamp" ]; then
	say "kernel $line"
	rm -rf "$dir" "$dir.debs"
	mkdir -p "$dir.debs" "$dir"
	cd "$dir.debs"
	apt-get -q download "$package=${line%% *}" >>"$VM/kernels.log" 2>&1 || die "cannot fetch $package; see $VM/kernels.log"
	# From Linux 7.3 on the package is empty and depends on two others.
	for p in binary modules; do
		if dpkg -I linux-image-*.deb | grep "linux-$p-$release" >/dev/null; then
			apt-get -q download "linux-$p-$release" >>"$VM/kernels.log" 2>&1 || die "cannot fetch linux-$p-$release; see $VM/kernels.log"
		fi
	done
	for d in *.deb; do dpkg -x "$d" "$dir"; done
	cd /
	rm -rf "$dir.debs"
	"$REPO/hack/vm/initrd.sh" "$dir"
	echo "$stamp" >"$dir/.stamp"
fi
echo "$dir"
