#!/bin/sh
# After the installation of a package: nothing is configured or started.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
	systemd-tmpfiles --create shiftoverlay.conf || true
fi
