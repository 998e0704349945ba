package idshift_test

import (
	"errors"
	"fmt"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// Every way in which podman, the kernel and mount programs spell a mapping.
func ExampleParseExtents() {
	for _, text := range []string{
		"0:100000:1000,1000:1000:1",
		"1000:1000 , 0:100000:1000",
		"         0     100000       1000\n      1000       1000          1\n",
		":0:100000:1000:1000:1000:1",
	} {
		e, err := idshift.ParseExtents(text)
		fmt.Println(e, err)
	}
	_, err := idshift.ParseExtents("0:100000:65536,10:500000:5")
	fmt.Println(err)
	// Output:
	// 0:100000:1000,1000:1000:1 <nil>
	// 0:100000:1000,1000:1000:1 <nil>
	// 0:100000:1000,1000:1000:1 <nil>
	// 0:100000:1000,1000:1000:1 <nil>
	// extent 0:100000:65536 overlaps extent 10:500000:5 in container IDs 10-14
}

// One mapping in two spellings has one key.
func ExampleMapping_Key() {
	a, _ := idshift.ParseMapping("0:100000:65536", "0:100000:65536")
	b, _ := idshift.ParseMapping("1:100001:65535,0:100000", "0:100000:65536")
	fmt.Println(a.Key() == b.Key())
	fmt.Println(a.Key().String()[:16])
	// Output:
	// true
	// 3e9c708e4998a5da
}

// The owner of a file, forth and back, and an owner that is not mapped.
func ExampleShift_Owner() {
	m, err := idshift.ParseMapping("0:100000:65536", "0:100000:65536")
	if err != nil {
		fmt.Println(err)
		return
	}
	s, err := idshift.NewShift(m, idshift.Refuse)
	if err != nil {
		fmt.Println(err)
		return
	}
	uid, gid, _ := s.Owner(0, 42)
	fmt.Println(uid, gid)
	uid, gid, _ = s.Back().Owner(uid, gid)
	fmt.Println(uid, gid)

	_, _, err = s.Owner(70000, 0)
	fmt.Println(idshift.AtPath(err, "srv/data"))
	fmt.Println(errors.Is(err, idshift.ErrNotMapped))
	// Output:
	// 100000 100042
	// 0 42
	// "srv/data": uid 70000 has no host ID in the mapping; extend the mapping to cover it or allow the overflow ID (unmapped = "overflow")
	// true
}

// A file capability gets the container's root as its root user.
func ExampleShift_Xattr() {
	m, err := idshift.ParseMapping("0:100000:65536", "0:100000:65536")
	if err != nil {
		fmt.Println(err)
		return
	}
	s, err := idshift.NewShift(m, idshift.Overflow)
	if err != nil {
		fmt.Println(err)
		return
	}
	ping := []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0} // cap_net_raw=ep
	out, keep, err := s.Xattr(idshift.Capability, ping)
	fmt.Printf("%x %t %v\n", out, keep, err)
	out, keep, err = s.Back().Xattr(idshift.Capability, out)
	fmt.Printf("%x %t %v\n", out, keep, err)
	_, keep, err = s.Xattr("trusted.overlay.opaque", []byte("y"))
	fmt.Println(keep, err)
	// Output:
	// 0100000300200000000000000000000000000000a0860100 true <nil>
	// 0100000200200000000000000000000000000000 true <nil>
	// false <nil>
}
