// Package config reads shiftoverlay.conf. It is a file of its own because
// containers/storage refuses tables it does not know in storage.conf.
//
// # Format
//
// TOML with one table; every key may be left out:
//
//	[shiftoverlay]
//	engine = "auto"          # auto | idmap | erofs | metacopy | copyup
//	unmapped = "overflow"    # overflow | refuse
//	cache_max_size = "10g"   # bytes, with k, m, g, t in powers of 1024; "0": no bound
//	cache_max_age = "720h"   # a duration of Go; "0": for ever
//	workers = 0              # 0: as many as there are processors
//
// # Files
//
// SHIFTOVERLAY_CONF names the one file that is read. Without it, the first of
// these is, all of which may be absent:
//
//	$XDG_CONFIG_HOME/containers/shiftoverlay.conf   rootless only; ~/.config without XDG_CONFIG_HOME
//	/etc/containers/shiftoverlay.conf
//	/usr/share/containers/shiftoverlay.conf
//
// Then drop-ins named *.conf are read, from the folders shiftoverlay.conf.d
// and shiftoverlay.rootful.conf.d or shiftoverlay.rootless.conf.d beside each
// of these places, in the order of their names. One name counts once: that of
// the place higher in the list above and, in one place, that of the folder
// for rootful or rootless. Last comes the file that
// SHIFTOVERLAY_CONF_OVERRIDE names. Each file changes only the keys it has.
//
// # When not to use
//
// For what a mount option can say about one mount: see Config.Apply.
package config
