#!/bin/sh
# Before a package is removed, not before it is upgraded: the store of the default
# place must go on without shiftoverlay-mount.
set -e
case ${1:-} in
upgrade | 1) exit 0 ;; # of dpkg and rpm
esac
if [ -d /run/systemd/system ]; then
	systemctl disable --now shiftoverlay-prune.timer || true
fi
store=/var/lib/containers/storage
if [ -d $store/overlay-shifted ]; then
	shiftoverlay-mount --restore $store ||
		echo "shiftoverlay: $store could not be made ready for plain overlay: containers there may have to be made again" >&2
fi
rmdir /run/shiftoverlay 2>/dev/null || rm -rf --one-file-system /run/shiftoverlay
