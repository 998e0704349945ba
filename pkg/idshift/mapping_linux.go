package idshift

import "syscall"

// SysProcIDMaps returns the extents as package syscall wants them, for making a
// user namespace (user_namespaces(7)).
func (e Extents) SysProcIDMaps() []syscall.SysProcIDMap {
	out := make([]syscall.SysProcIDMap, len(e))
	for i, x := range e {
		out[i] = syscall.SysProcIDMap{ContainerID: int(x.ContainerID), HostID: int(x.HostID), Size: int(x.Size)}
	}
	return out
}
