package main

import (
	"errors"
	"fmt"
	"time"
)

// growing is how many containers are started one after another to see what one
// more takes; the first is not counted.
const growing = 6

// slowStart is the time of a start, in seconds, and largeKB the disk taken, from
// which on there are fewer containers at the same time.
const (
	slowStart = 3
	largeKB   = 300 << 10
)

// crowdRounds is how often more than two containers read the same file.
const crowdRounds = 3

// sharersImage is the image with which some configurations have many containers
// read the same file.
const sharersImage = "big"

// crowd is a number of running containers of one configuration.
type crowd struct {
	b        *bench
	r        *runner
	sessions []*session
}

// memory measures what one more container costs, and how much of the page cache
// containers share.
func (b *bench) memory(r *runner, _ int) (err error) {
	if err := r.forget(); err != nil {
		return err
	}
	c := &crowd{b: b, r: r}
	defer func() { err = errors.Join(err, c.end()) }()
	n := growing
	if start, _ := r.cell.median(freshS); start > slowStart {
		n = 3
	}
	if kb, _ := r.cell.median(freshKB); kb > largeKB {
		n = 2
	}
	if err := dropCaches(b.Dir); err != nil && b.result.Machine.NoCold == "" {
		return err
	}
	for range n {
		if err := c.grow(); err != nil {
			return err
		}
	}
	if b.Image == sharersImage {
		for len(c.sessions) < r.Sharers {
			if err := c.join(); err != nil {
				return err
			}
		}
	}
	readers := c.sessions[:2]
	if b.Image == sharersImage && r.Sharers > 0 {
		readers = c.sessions
	}
	rounds := b.Rounds
	if len(readers) > 2 {
		rounds = min(rounds, crowdRounds)
	}
	if b.result.Machine.NoCold != "" {
		rounds = 0
	}
	for range rounds {
		if err := share(r, readers); err != nil {
			return err
		}
	}
	return nil
}

// join starts one more container, with a mapping of its own: one that this
// configuration had, while there are any.
func (c *crowd) join() error {
	i := len(c.sessions)
	var m int
	if i < len(c.r.used) {
		m = c.r.used[len(c.r.used)-1-i]
	} else {
		m = c.b.next
		c.b.next += idsPerContainer
	}
	name := c.name(i)
	if _, _, err := c.r.start(name, m); err != nil {
		return err
	}
	s, err := c.r.session(name)
	if err == nil {
		c.sessions = append(c.sessions, s)
	}
	return err
}

func (c *crowd) name(i int) string { return fmt.Sprintf("%s-memory-%d", c.r.ID, i) }

// grow lets one more container join and look at all files.
func (c *crowd) grow() error {
	before, err := settled()
	if err != nil {
		return err
	}
	if err := c.join(); err != nil {
		return err
	}
	started, err := settled()
	if err != nil {
		return err
	}
	if _, err := c.sessions[len(c.sessions)-1].do(taskFind); err != nil {
		return err
	}
	found, err := settled()
	if err != nil || len(c.sessions) == 1 {
		return err // the first one brings in what all of them share
	}
	kernel, err := c.r.kernelMemory(c.name(len(c.sessions) - 1))
	if err != nil {
		return err
	}
	if kernel > 0 {
		c.r.cell.add(kernelKB, kernel)
	}
	c.r.cell.add(slabStartKB, started["Slab"]-before["Slab"])
	c.r.cell.add(slabFindKB, found["Slab"]-before["Slab"])
	c.r.cell.add(memoryKB, taken(found)-taken(before))
	return nil
}

// taken is the memory that is not free and not page cache: that of processes
// and of the kernel, reclaimable or not. Cached includes tmpfs, where the
// measured file system may be: that is disk here.
func taken(m map[string]float64) float64 {
	return m["MemTotal"] - m["MemFree"] - m["Buffers"] - m["Cached"]
}

// settled reads /proc/meminfo when what ended has been cleaned up.
func settled() (map[string]float64, error) {
	time.Sleep(100 * time.Millisecond)
	return meminfo()
}

// share has all of them read the same file, of which nothing is in memory.
func share(r *runner, readers []*session) error {
	if err := dropCaches(r.dir); err != nil {
		return err
	}
	for _, s := range readers { // their own program is back in memory
		if _, err := s.do(taskNothing); err != nil {
			return err
		}
	}
	before, err := settled()
	if err != nil {
		return err
	}
	for _, s := range readers {
		if _, err := s.do(taskData); err != nil {
			return err
		}
	}
	after, err := settled()
	if err != nil {
		return err
	}
	grown := after["Cached"] - after["Shmem"] - (before["Cached"] - before["Shmem"])
	r.cell.add(shared, grown/(dataSize/1024))
	r.cell.add(sharers, float64(len(readers)))
	return nil
}

// end removes all of them.
func (c *crowd) end() error {
	var err error
	for _, s := range c.sessions {
		err = errors.Join(err, s.close())
	}
	_, _, _, rmErr := c.r.podman("rm", "-f", "-t", "0", "-a")
	return errors.Join(err, rmErr, c.r.forget())
}
