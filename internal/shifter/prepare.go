package shifter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/cache"
	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/internal/mount"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// Meta is what the cache keeps beside a shifted lower, for those who list it.
type Meta struct {
	Engine string   `json:"engine"`
	Format int      `json:"format"`
	Layers []string `json:"layers"`
	// Mapping is nil for what serves all mappings.
	Mapping *idshift.Mapping `json:"mapping,omitempty"`
}

// Lower is a shifted lower that is ready to be mounted.
type Lower struct {
	// Engine is the engine that made it.
	Engine string
	// Ref is what the cache keeps for it, to be released one day; zero if that
	// is nothing.
	Ref cache.Ref
	// Path is the folder to be put above the chain; "" if there is none.
	Path string
	// Tree is to be put above the chain in a folder's place, if it is not nil.
	Tree *mount.Tree
	// Built tells whether something was added to the cache for it.
	Built bool
	// Parts are the chain's folders, to be lowers in their place.
	Parts []mount.Part
	// Data are the data-only lowers to be put behind Path or Tree instead of the
	// chain, uppermost first. If there are none, the chain is below as ordinary
	// lowers.
	Data []string
	// DataTrees are more of them, behind Data.
	DataTrees []*mount.Tree
}

// Close ends what is needed until the lower has been mounted. It may be called
// twice.
func (l Lower) Close() error {
	trees := append(slices.Clone(l.DataTrees), l.Tree)
	for _, p := range l.Parts {
		trees = append(trees, p.Tree) // closing one twice does nothing
	}
	return mount.CloseAll(trees...)
}

// DurableAfter is how long after a build an entry is made durable: by then the
// kernel has written most of it by itself (vm.dirty_expire_centisecs, 30 s by
// default), so that little is left to wait for.
const DurableAfter = 45 * time.Second

// slowAfter is how long Prepare may take before somebody is told.
const slowAfter = time.Second

// Prepare makes what the plan needs. user is who needs it, until Release of
// the lower's Ref. Prepare may take as long as a build; cancelling ctx ends
// it.
func (s *Shifter) Prepare(ctx context.Context, p Plan, user string) (Lower, error) {
	if s.o.Slow == nil || p.Ref == (cache.Ref{}) {
		return s.prepare(ctx, p, user, nil)
	}
	count := new(atomic.Int64)
	defer s.watch(p, count)()
	return s.prepare(ctx, p, user, count)
}

// watch calls Slow as long as its result has not been called.
func (s *Shifter) watch(p Plan, count *atomic.Int64) (done func()) {
	start := time.Now()
	stop := make(chan struct{})
	var ended sync.WaitGroup
	ended.Go(func() {
		tick := time.NewTicker(slowAfter)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				s.o.Slow(p, time.Since(start), count.Load())
			}
		}
	})
	return func() {
		close(stop)
		ended.Wait()
	}
}

// prepare is Prepare without telling; count may be nil.
func (s *Shifter) prepare(ctx context.Context, p Plan, user string, count *atomic.Int64) (Lower, error) {
	if done := p.Job.Done; count != nil {
		p.Job.Done = func(n int) {
			count.Add(int64(n))
			if done != nil {
				done(n)
			}
		}
	}
	l := Lower{Engine: p.Engine.Name(), Ref: p.Ref}
	if p.Ref == (cache.Ref{}) {
		if m, ok := p.Engine.(engine.Mapper); ok && m.MakesParts() && len(p.Job.Chain) > 0 {
			var err error
			if l.Parts, err = s.parts(m, p); err != nil {
				s.o.Debugf("engine %v, mapping %s: left to overlay: %v", p.Engine, p.Mapping, err)
			}
		}
		return l, nil
	}
	start := time.Now()
	var err error
	var builtNow bool
	switch e := p.Engine.(type) {
	case engine.Builder:
		builtNow, err = s.build(ctx, e, p, user, &l)
	case engine.Imager:
		builtNow, err = s.image(ctx, e, p, user, &l)
		if unfit, ok := errors.AsType[*engine.UnfitError](err); ok && p.Else != nil {
			s.o.Debugf("layer %s: %v", p.Ref.Layer, unfit)
			return s.prepare(ctx, *p.Else, user, count)
		}
	}
	if err != nil {
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			err = fmt.Errorf("%w (%s)", err, room(s.o.Cache.Dir()))
		}
		return Lower{}, fmt.Errorf("make shifted lower of layer %s for mapping %s with engine %s: %w", p.Ref.Layer, p.Mapping, p.Engine.Name(), err)
	}
	l.Built = builtNow
	s.o.Debugf("engine %v, layer %s, mapping %s: lower %s, built now: %t, %s", p.Engine, p.Ref.Layer, p.Mapping, p.Ref.Key, builtNow, time.Since(start))
	return l, nil
}

// acquire gets an entry of the cache and has it made durable when its time
// has come.
func (s *Shifter) acquire(ctx context.Context, p Plan, ref cache.Ref, user string, format int, mapping *idshift.Mapping, b cache.Builder) (*cache.Entry, error) {
	var err error
	b.Meta, err = json.Marshal(Meta{Engine: p.Engine.Name(), Format: format, Layers: p.Layers, Mapping: mapping})
	if err != nil {
		return nil, fmt.Errorf("describe shifted lower: %w", err)
	}
	e, err := s.o.Cache.Acquire(ctx, ref, user, b)
	if err == nil && !b.Disposable && !e.Durable() && e.Age() > DurableAfter {
		s.o.Later(func() {
			if err := s.o.Cache.MarkDurable(context.WithoutCancel(ctx), ref); err != nil {
				s.o.Debugf("mark %s durable: %v", ref.Key, err)
			}
		})
	}
	return e, err
}

// build gets the folder that a Builder makes for l.
func (s *Shifter) build(ctx context.Context, b engine.Builder, p Plan, user string, l *Lower) (now bool, err error) {
	cb := cache.Builder{Build: func(ctx context.Context, dir string) error {
		if err := preflight(ctx, dir, p.Job); errors.Is(err, unix.ENOSPC) {
			return err
		} else if err != nil {
			s.o.Debugf("layer %s: %v", p.Ref.Layer, err) // the build will say it, too
		}
		return b.Build(ctx, dir, p.Job)
	}}
	if r, ok := b.(engine.Resumer); ok {
		cb.State = func() (string, error) { return chainState(p.Job.Chain) }
		cb.Resume = func(ctx context.Context, dir string) error { return r.Resume(ctx, dir, p.Job) }
	}
	if r, ok := b.(engine.Recycler); ok {
		kin := key(p.Layers, b.Name()+s.variant(), b.Format(), "", 0)
		cb.Kin = kin.String()
		cb.Recycle = func(ctx context.Context, dir string) error { return r.Recycle(ctx, dir, p.Job) }
	}
	err = s.undamaged(ctx, func() error {
		e, err := s.acquire(ctx, p, p.Ref, user, b.Format(), &p.Mapping, cb)
		if err != nil {
			return err
		}
		l.Path, now = b.Lower(e.Path()), e.BuiltNow()
		// Without it overlay would mount the layers alone, with their own owners.
		st, err := os.Lstat(l.Path)
		if err == nil && !st.IsDir() {
			err = &os.PathError{Op: "open", Path: l.Path, Err: unix.ENOTDIR}
		}
		if err != nil {
			return damaged(e, errors.Join(engine.ErrDamaged, err))
		}
		if r, ok := b.(engine.Redirector); ok {
			if l.Data, l.DataTrees, err = r.Data(e.Path(), p.Job.Chain); err != nil {
				return errors.Join(damaged(e, err), s.Release(p.Ref, user))
			}
		}
		return nil
	})
	return now, err
}

// damagedError says that an entry's data is not what was built.
type damagedError struct {
	entry *cache.Entry
	error
}

func (e *damagedError) Unwrap() error { return e.error }

// damaged marks an error about the data of an entry that was there before.
func damaged(e *cache.Entry, err error) error {
	if !errors.Is(err, engine.ErrDamaged) || e.BuiltNow() {
		return err
	}
	return &damagedError{e, err}
}

// undamaged does something that uses entries, and again without one that turned
// out to be damaged: a patched image, and the template that it is made of.
func (s *Shifter) undamaged(ctx context.Context, do func() error) error {
	err := do()
	for range 2 {
		bad, ok := errors.AsType[*damagedError](err)
		if !ok || ctx.Err() != nil {
			return err
		}
		s.o.Debugf("shifted lower %s is damaged and made anew: %v", bad.entry.Ref(), err)
		if err := s.o.Cache.Distrust(ctx, bad.entry); err != nil {
			return errors.Join(bad, err)
		}
		err = do()
	}
	return err
}

// chainState names the folders of a chain as they are now: an image that is removed
// and pulled again has the same layers, and other inodes.
func chainState(chain []string) (string, error) {
	var out strings.Builder
	for _, dir := range chain {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return "", &os.PathError{Op: "stat", Path: dir, Err: err}
		}
		fmt.Fprintf(&out, "%d:%d:%d.%d ", st.Dev, st.Ino, st.Ctim.Sec, st.Ctim.Nsec)
	}
	return out.String(), nil
}

// image gets the image that an Imager makes, and mounts it for l.
func (s *Shifter) image(ctx context.Context, i engine.Imager, p Plan, user string, l *Lower) (now bool, err error) {
	err = s.undamaged(ctx, func() (err error) {
		now, err = s.imageOnce(ctx, i, p, user, l)
		return err
	})
	return now, err
}

func (s *Shifter) imageOnce(ctx context.Context, i engine.Imager, p Plan, user string, l *Lower) (now bool, err error) {
	ns := -1
	var e *cache.Entry
	if i.Patches() {
		e, err = s.patched(ctx, i, p, user)
	} else if ns, err = s.o.UserNS(p.Mapping); err != nil {
		return false, fmt.Errorf("make a user namespace: %w", err)
	} else {
		defer linux.Close(ns)
		e, err = s.template(ctx, i, p, user)
	}
	if err != nil {
		return false, err
	}
	dataOnly, err := i.DataOnly(e.Path())
	if err == nil {
		l.Tree, err = i.Mount(e.Path(), ns)
	}
	if dataOnly {
		l.Data = p.Job.Chain
	}
	if err != nil {
		return false, errors.Join(damaged(e, err), s.Release(p.Ref, user))
	}
	return e.BuiltNow(), nil
}

// parts gets the chain's folders as a Mapper shows them.
func (s *Shifter) parts(m engine.Mapper, p Plan) ([]mount.Part, error) {
	ns, err := s.o.UserNS(p.Mapping)
	if err != nil {
		return nil, fmt.Errorf("make a user namespace: %w", err)
	}
	defer linux.Close(ns)
	return m.Parts(p.Job.Chain, ns)
}

// template gets the image that serves all mappings.
func (s *Shifter) template(ctx context.Context, i engine.Imager, p Plan, user string) (*cache.Entry, error) {
	e, err := s.acquire(ctx, p, p.Template, user, i.Format(), nil, cache.Builder{
		Build: func(ctx context.Context, dir string) error {
			return i.Template(ctx, dir, engine.Job{Chain: p.Job.Chain, Workers: p.Job.Workers, Done: p.Job.Done})
		},
	})
	if err != nil {
		return nil, err
	}
	return e, s.fit(i, p, e, user)
}

// patched gets the image that serves one mapping.
func (s *Shifter) patched(ctx context.Context, i engine.Imager, p Plan, user string) (*cache.Entry, error) {
	e, err := s.acquire(ctx, p, p.Ref, user, i.Format(), &p.Mapping, cache.Builder{
		// Made anew from the template in no time, so not worth a place on the
		// disk that another entry could have, or being made durable.
		Disposable: true,
		Build: func(ctx context.Context, dir string) (err error) {
			// Who dies here must not hold the template as long as the container
			// is there.
			passing := s.o.Passing(user)
			t, err := s.template(ctx, i, p, passing)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, s.Release(p.Template, passing)) }()
			return damaged(t, i.Patch(ctx, dir, t.Path(), p.Job))
		},
	})
	if err != nil {
		return nil, err
	}
	return e, s.fit(i, p, e, user)
}

// fit gives an entry back, with an UnfitError, if it would serve but another
// engine would serve better.
func (s *Shifter) fit(i engine.Imager, p Plan, e *cache.Entry, user string) error {
	if p.Else == nil {
		return nil
	}
	reason, err := i.Unfit(e.Path())
	if err != nil {
		err = damaged(e, err)
	} else if reason != "" {
		err = &engine.UnfitError{Engine: i.Name(), Reason: reason}
	}
	if err != nil {
		return errors.Join(err, s.Release(e.Ref(), user))
	}
	return nil
}

// room says how much is free on the file system of the cache, after a failed
// build was removed.
func room(dir string) string {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Sprintf("statfs %s: %v", dir, err)
	}
	return fmt.Sprintf("free at %s: %d MiB and %d inodes; with engines metacopy and copyup one inode is needed for each file of the image: free some, or use a file system with more inodes",
		dir, fs.Bavail*uint64(fs.Bsize)>>20, fs.Ffree)
}

// Release says that user does not need the shifted lower any more.
func (s *Shifter) Release(ref cache.Ref, user string) error {
	return s.o.Cache.Release(ref, user)
}

// BuildOnce makes a shifted lower in dir, an empty folder, without the cache,
// with the cheapest engine that makes a folder for ordinary lowers, and returns
// the folder that it made below dir.
func (s *Shifter) BuildOnce(ctx context.Context, dir string, chain []string, shift *idshift.Shift) (string, error) {
	for _, e := range engines(s.o.Env) {
		b, ok := e.(engine.Builder)
		if !ok || b.Check(s.o.Env) != nil {
			continue
		}
		if _, redirects := e.(engine.Redirector); redirects && s.o.Env.Rootless {
			continue // what it makes needs data-only lowers
		}
		if err := b.Build(ctx, dir, engine.Job{Chain: chain, Shift: shift, Workers: s.o.Workers, Rootless: s.o.Env.Rootless}); err != nil {
			return "", fmt.Errorf("shift with engine %s: %w", b.Name(), err)
		}
		return b.Lower(dir), nil
	}
	return "", fmt.Errorf("no engine that builds works here: %s", s.choice.Reason())
}
