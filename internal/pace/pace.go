// Package pace lets a process that works in the background rest while others are
// at work. A low priority alone does not spare them: it counts within a session or
// a control group only, and those on the other processors share caches, memory and
// the file system.
package pace

import (
	"bytes"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// work is how long it works, at least, before it rests.
	work = 5 * time.Millisecond
	// look is how long it believes what it saw of others.
	look = 100 * time.Millisecond
	// atWork is the part of a processor that others take if they are at work.
	atWork = 0.2
	// clockTicks is the unit of /proc/stat (USER_HZ, the same everywhere).
	clockTicks = 10 * time.Millisecond
)

// Pacer lets a process rest while others are at work. It is safe for concurrent
// use: all threads rest at the same time.
type Pacer struct {
	rest int
	mu   sync.Mutex
	// began is when the work since the last rest began.
	began time.Time
	// looked is when busy was found out, from what others and this process had
	// taken of the processors until then. Until the first time they are taken to be:
	// what is made in a moment would not spare them otherwise.
	looked time.Time
	busy   bool
	taken  time.Duration
	// others returns how long all other processes have worked, and sleep waits.
	others func() (time.Duration, error)
	sleep  func(time.Duration)
	now    func() time.Time
}

// New returns a Pacer that rests, while others are at work, rest times as long as
// it has worked.
func New(rest int) *Pacer {
	p := &Pacer{rest: rest, busy: true, others: othersTime, sleep: time.Sleep, now: time.Now}
	p.looked = p.now()
	p.began = p.looked
	p.taken, _ = p.others()
	return p
}

// Rest is called often by those who work, and waits if it is time to.
func (p *Pacer) Rest() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	worked := now.Sub(p.began)
	if worked < work {
		return
	}
	if since := now.Sub(p.looked); since >= look {
		taken, err := p.others()
		p.busy = err == nil && taken-p.taken >= time.Duration(atWork*float64(since))
		if err == nil {
			p.looked, p.taken = now, taken
		}
	}
	if p.busy {
		p.sleep(min(time.Duration(p.rest)*worked, time.Second))
	}
	p.began = p.now()
}

// othersTime is how long the processors have worked for programs other than this
// one since the machine was started (proc_stat(5)). What the kernel does is left
// out: much of it is done for this process, by threads of its own.
func othersTime() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	var user, nice int64
	line, _, _ := bytes.Cut(b, []byte("\n"))
	if _, err := fmt.Sscanf(string(line), "cpu %d %d", &user, &nice); err != nil {
		return 0, fmt.Errorf("/proc/stat: %w", err)
	}
	var own unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &own); err != nil {
		return 0, os.NewSyscallError("getrusage", err)
	}
	return time.Duration(user+nice)*clockTicks - time.Duration(own.Utime.Nano()), nil
}
