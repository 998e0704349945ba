package tree

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// TestLinkNames: an inode keeps its name however many others are seen before
// it is made, and no two have the same.
func TestLinkNames(t *testing.T) {
	t.Parallel()
	const inodes, threads = 200, 8
	w := &writer{links: make(map[idshift.LinkKey]*link)}
	var got [threads][inodes]*link
	var wg sync.WaitGroup
	for n := range threads {
		wg.Go(func() {
			for i := range inodes {
				ino := (i*7 + n*31) % inodes
				got[n][ino] = w.link(idshift.LinkKey{Layer: ino % 2, Ino: uint64(ino)})
			}
		})
	}
	wg.Wait()
	names := make(map[string]int)
	for ino := range inodes {
		names[got[0][ino].name]++
		for n := range threads {
			assert.Same(t, got[0][ino], got[n][ino])
		}
	}
	assert.Len(t, names, inodes)
}
