package pace

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestPacer: it rests while others are at work, and only then.
func TestPacer(t *testing.T) {
	var taken, rested time.Duration
	p := New(3)
	now := p.looked
	p.taken = 0
	p.others = func() (time.Duration, error) { return taken, nil }
	p.sleep = func(d time.Duration) { rested += d; now = now.Add(d) }
	p.now = func() time.Time { return now }
	// work for a second in steps of a millisecond, while others take a part of a processor.
	work := func(part float64) (worked time.Duration) {
		rested = 0
		for start := now; now.Sub(start) < time.Second; {
			before := now
			now = now.Add(time.Millisecond)
			worked += time.Millisecond
			p.Rest()
			taken += time.Duration(part * float64(now.Sub(before)))
		}
		return worked
	}
	assert.GreaterOrEqual(t, work(0), 900*time.Millisecond, "alone, which is not known at first")
	assert.InDelta(t, 0.08, rested.Seconds(), 0.03)
	assert.GreaterOrEqual(t, work(0), 990*time.Millisecond, "alone")
	assert.Zero(t, rested)
	worked := work(1)
	assert.InDelta(t, 0.3, worked.Seconds(), 0.1, "others at work")
	assert.InDelta(t, 0.7, rested.Seconds(), 0.1)
	worked = work(0.05)
	assert.GreaterOrEqual(t, worked, 800*time.Millisecond, "alone again, but for little")
}

// TestOthersTime: /proc/stat can be read, and the time does not go back by more than
// the grain of its clock.
func TestOthersTime(t *testing.T) {
	before, err := othersTime()
	require.NoError(t, err)
	assert.Positive(t, before)
	after, err := othersTime()
	require.NoError(t, err)
	assert.GreaterOrEqual(t, after, before-2*clockTicks)
}
