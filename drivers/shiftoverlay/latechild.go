package shiftoverlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	mounts "github.com/shiftoverlay/shiftoverlay/internal/mount"
	"github.com/shiftoverlay/shiftoverlay/internal/pace"
)

// lateNice is the niceness of the process (setpriority(2)), lateRest how much longer
// than it works it rests while others are at work.
const (
	lateNice = 10
	lateRest = 2
)

type lateCommand = exec.Cmd

// lateMain is the process that mounts a container later. Its standard input has
// the job, descriptor 3 is where the kernel says who waits.
func lateMain() {
	// One start in the background must not slow down all others: all threads that
	// there are, and those that they will make.
	_ = unix.Setpriority(unix.PRIO_PGRP, 0, lateNice)
	if err := mountLate(os.Stdin, os.NewFile(3, "requests")); err != nil {
		fmt.Fprintf(os.Stderr, "Error: shiftoverlay: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// errNobody says that the container has been unmounted before it was mounted.
var errNobody = errors.New("nobody waits for the mount any more")

// lateMount is what that process does.
type lateMount struct {
	lateJob
	d       *Driver
	merged  string
	waiters mounts.Waiters
	// placing is held by who mounts, or gives up.
	placing sync.Mutex
	over    bool
}

func mountLate(input io.Reader, requests *os.File) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	var l lateMount
	if err := json.NewDecoder(input).Decode(&l.lateJob); err != nil {
		return nil // who wanted something has died, or does it himself
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go l.waiters.Listen(requests, func() { cancel(errNobody) })
	g, err := Init(l.Home, l.Options)
	if err != nil {
		return err
	}
	l.d = g.(interface{ base() *Driver }).base() //nolint:forcetypeassert // what Init makes
	l.d.late.after, l.d.late.doing = 0, l.ID
	l.d.pace = pace.New(lateRest).Rest
	p, err := l.d.paths(l.ID)
	if err != nil {
		return err
	}
	l.merged = p.merged
	go func() {
		<-stop
		cancel(errors.Join(errNobody, l.giveUp()))
	}()
	err = l.place(l.build(ctx, p))
	l.d.trimCache()
	l.linger()
	if errors.Is(err, errNobody) || errors.Is(context.Cause(ctx), errNobody) {
		return nil
	}
	return err
}

// base is the driver in whatever type Init has returned.
func (d *Driver) base() *Driver { return d }

// build makes what the mount will find in the cache. It takes no lock.
func (l *lateMount) build(ctx context.Context, p layerPaths) error {
	m, _, err := mappingOf(l.Mount)
	if err != nil {
		return err
	}
	chain, err := p.chain()
	if err != nil {
		return err
	}
	lower, err := l.d.prepare(ctx, l.ID, chain, m)
	return errors.Join(err, lower.Close())
}

// place mounts the container above its trigger, or lets all fail who wait, if
// failed is an error. Nobody else mounts or unmounts it meanwhile: endLate waits.
func (l *lateMount) place(failed error) error {
	l.placing.Lock()
	defer l.placing.Unlock()
	release, err := lockMark(l.d.lateMark(l.ID), processName(os.Getpid()))
	if errors.Is(err, os.ErrNotExist) {
		return errNobody
	}
	if err != nil {
		return errors.Join(failed, err)
	}
	defer release()
	if l.over || !l.d.pending(l.ID, l.merged) {
		return errNobody
	}
	l.over = true
	if err := l.waiters.Hold(l.merged); err != nil {
		return errors.Join(failed, err)
	}
	if failed == nil {
		_, failed = l.d.Get(l.ID, l.Mount)
	}
	if failed != nil {
		return errors.Join(failed, l.waiters.Fail())
	}
	l.waiters.Release()
	return nil
}

// lateLinger is how long the process stays after the mount for those who were
// just about to wait. A request that nobody reads would never be answered.
const lateLinger = time.Second

// linger waits for the last of those who wait, and lets whoever is later than that
// fail rather than wait for ever.
func (l *lateMount) linger() {
	if l.waiters.Released() {
		time.Sleep(lateLinger)
	}
	_ = l.waiters.Fail()
	l.waiters.Close()
}

// giveUp lets all fail who wait, and takes the trigger away, if it has not come
// to the mount. Whoever asks for it holds the lock of the store.
func (l *lateMount) giveUp() error {
	l.placing.Lock()
	defer l.placing.Unlock()
	if l.over || !l.d.pending(l.ID, l.merged) {
		return nil
	}
	l.over = true
	if err := l.waiters.Hold(l.merged); err != nil {
		return err
	}
	defer l.waiters.Close()
	return errors.Join(l.waiters.Fail(), mounts.Detach(l.merged))
}
