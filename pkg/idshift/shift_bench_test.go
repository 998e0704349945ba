package idshift_test

import (
	"strings"
	"testing"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// benchMappings are a mapping of --userns=auto, one of keep-id and the longest
// that the kernel takes.
func benchMappings() map[string]string {
	return map[string]string{
		"extents=1":   auto,
		"extents=3":   "0:1:1000,1000:0:1,1001:1001:64536",
		"extents=340": strings.TrimSpace(apart(idshift.MaxExtents)),
	}
}

func BenchmarkToHost(b *testing.B) {
	for name, text := range benchMappings() {
		b.Run(name, func(b *testing.B) {
			e := mapping(b, text).UIDs
			b.ReportAllocs()
			id := uint32(0)
			for b.Loop() {
				e.ToHost(id & 1023)
				id++
			}
		})
	}
}

func BenchmarkOwner(b *testing.B) {
	for name, text := range benchMappings() {
		b.Run(name, func(b *testing.B) {
			s := shift(b, text, idshift.Overflow)
			b.ReportAllocs()
			id := uint32(0)
			for b.Loop() {
				if _, _, err := s.Owner(id&1023, id&1023); err != nil {
					b.Fatal(err)
				}
				id++
			}
		})
	}
}

func BenchmarkXattr(b *testing.B) {
	s := shift(b, auto, idshift.Overflow)
	for _, attribute := range []struct {
		name  string
		value []byte
	}{
		{"security.selinux", []byte("system_u:object_r:container_file_t:s0\x00")},
		{idshift.ACLAccess, namedACL(33, 42)},
		{idshift.Capability, capV2()},
	} {
		b.Run(attribute.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := s.Xattr(attribute.name, attribute.value); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
