// Package shifter joins the rooms of the house: it decides with which engine
// an image is shown under a mapping (Plan, a pure value) and makes what the
// plan needs (Prepare).
package shifter

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/cache"
	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/copyup"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/idmap"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/metacopy"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// engines is every engine, cheapest first.
func engines() []engine.Engine {
	return []engine.Engine{idmap.Engine{}, metacopy.Engine{}, copyup.Engine{}}
}

// Settings say how to shift.
type Settings struct {
	// Engine is an engine's name or engine.Auto.
	Engine string
	// Unmapped is the policy for IDs outside the mapping.
	Unmapped idshift.Unmapped
	// Workers is the number of threads of a build; 0 stands for one per
	// processor.
	Workers int
}

// Options are what a Shifter needs.
type Options struct {
	Settings
	// Cache keeps shifted lowers.
	Cache *cache.Cache
	// Env says what works here.
	Env engine.Env
	// Debugf, if set, is told about decisions and durations.
	Debugf func(format string, args ...any)
}

// Shifter makes shifted lowers. It is safe for concurrent use.
type Shifter struct {
	o      Options
	choice engine.Choice
}

// New returns a Shifter. An engine that is unknown or was asked for by name
// and does not work here is an error.
func New(o Options) (*Shifter, error) {
	if o.Debugf == nil {
		o.Debugf = func(string, ...any) {}
	}
	c, err := engine.Choose(engines(), o.Engine, o.Env)
	if err != nil {
		return nil, err
	}
	return &Shifter{o: o, choice: c}, nil
}

// Engine returns the name of the chosen engine and why it is not a cheaper
// one.
func (s *Shifter) Engine() (name, reason string) {
	return s.choice.Engine.Name(), s.choice.Reason()
}

// Layer is one layer of an image.
type Layer struct {
	ID string // the storage library's name for it
	// Dirs are its folders, uppermost first; more than one if the storage
	// library has put others above the original.
	Dirs []string
}

// Request asks for an image under a mapping.
type Request struct {
	// Chain is the image's layers, uppermost first.
	Chain []Layer
	// Mapping is the container's.
	Mapping idshift.Mapping
}

// Plan is what is to be done for a Request. It is a value without effects.
type Plan struct {
	// Engine is the engine's name.
	Engine string
	// Builder makes the shifted lower; nil if there is none to make.
	Builder engine.Builder
	// Ref is where the cache keeps the lower, if there is a Builder.
	Ref cache.Ref
	// Job is what Builder is to do.
	Job engine.Job
	// Layers are the IDs of the chain, uppermost first.
	Layers []string
	// Mapping is the request's.
	Mapping idshift.Mapping
}

// Plan decides what to do: nothing for an empty chain, or with an engine that
// does not build. Otherwise a mapping that is not valid is an error.
func (s *Shifter) Plan(r Request) (Plan, error) {
	p := Plan{Engine: s.choice.Engine.Name(), Mapping: r.Mapping}
	b, ok := s.choice.Engine.(engine.Builder)
	if !ok || len(r.Chain) == 0 {
		return p, nil
	}
	shift, err := idshift.NewShift(r.Mapping, s.o.Unmapped)
	if err != nil {
		return p, err
	}
	p.Builder = b
	p.Job = engine.Job{Shift: shift, Workers: s.o.Workers}
	for _, l := range r.Chain {
		p.Layers = append(p.Layers, l.ID)
		p.Job.Chain = append(p.Job.Chain, l.Dirs...)
	}
	p.Ref = cache.Ref{Layer: p.Layers[0], Key: key(p.Layers, r.Mapping, b, s.o.Unmapped)}
	return p, nil
}

// keyVersion changes when the meaning of a key's parts does.
const keyVersion = "shiftoverlay-key-1"

// key names a shifted lower: all that its content depends on, each part with
// its length before it.
func key(layers []string, m idshift.Mapping, b engine.Builder, u idshift.Unmapped) cache.Key {
	h := sha256.New()
	part := func(s string) {
		_ = binary.Write(h, binary.LittleEndian, uint32(len(s))) //nolint:gosec // short strings
		_, _ = io.WriteString(h, s)
	}
	mk := m.Key()
	part(keyVersion)
	part(b.Name())
	_ = binary.Write(h, binary.LittleEndian, uint32(b.Format())) //nolint:gosec // a small number
	part(u.String())
	part(string(mk[:]))
	for _, l := range layers {
		part(l)
	}
	return cache.Key(h.Sum(nil))
}

// Meta is what the cache keeps beside a shifted lower, for those who list it.
type Meta struct {
	Engine  string          `json:"engine"`
	Format  int             `json:"format"`
	Layers  []string        `json:"layers"`
	Mapping idshift.Mapping `json:"mapping"`
}

// durableAfter is how long after a build an entry is made durable: by then the
// kernel has written most of it by itself (vm.dirty_expire_centisecs, 30 s by
// default), so that little is left to wait for.
const durableAfter = 45 * time.Second

// Prepare makes what the plan needs and returns the folder to be put above
// the chain, "" if there is none. user is who needs it, until Release. Prepare
// may take as long as a build; cancelling ctx ends it.
func (s *Shifter) Prepare(ctx context.Context, p Plan, user string) (string, error) {
	if p.Builder == nil {
		return "", nil
	}
	meta, err := json.Marshal(Meta{Engine: p.Engine, Format: p.Builder.Format(), Layers: p.Layers, Mapping: p.Mapping})
	if err != nil {
		return "", fmt.Errorf("describe shifted lower: %w", err)
	}
	start := time.Now()
	e, err := s.o.Cache.Acquire(ctx, p.Ref, user, cache.Builder{
		Meta: meta,
		Build: func(ctx context.Context, dir string) error {
			return p.Builder.Build(ctx, dir, p.Job)
		},
	})
	if err != nil {
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			err = fmt.Errorf("%w (%s)", err, room(s.o.Cache.Dir()))
		}
		return "", fmt.Errorf("make shifted lower of layer %s for mapping %s with engine %s: %w", p.Ref.Layer, p.Mapping, p.Engine, err)
	}
	s.o.Debugf("engine %s, layer %s, mapping %s: lower %s, built now: %t, %s", p.Engine, p.Ref.Layer, p.Mapping, e.Path(), e.BuiltNow(), time.Since(start))
	if !e.Durable() && e.Age() > durableAfter {
		go func() {
			if err := s.o.Cache.MarkDurable(context.WithoutCancel(ctx), p.Ref); err != nil {
				s.o.Debugf("mark %s durable: %v", p.Ref.Key, err)
			}
		}()
	}
	return p.Builder.Lower(e.Path()), nil
}

// room says how much is free on the file system of the cache, after a failed
// build was removed.
func room(dir string) string {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Sprintf("statfs %s: %v", dir, err)
	}
	return fmt.Sprintf("free at %s: %d MiB and %d inodes; one inode is needed for each file of the image: free some, or use a file system with more inodes",
		dir, fs.Bavail*uint64(fs.Bsize)>>20, fs.Ffree)
}

// Release says that user does not need the shifted lower any more.
func (s *Shifter) Release(ref cache.Ref, user string) error {
	return s.o.Cache.Release(ref, user)
}

// BuildOnce makes a shifted lower in dir, an empty folder, without the cache,
// with the cheapest engine that makes anything, and returns the folder that it
// made below dir.
func (s *Shifter) BuildOnce(ctx context.Context, dir string, chain []string, shift *idshift.Shift) (string, error) {
	for _, e := range engines() {
		b, ok := e.(engine.Builder)
		if !ok || b.Check(s.o.Env) != nil {
			continue
		}
		if err := b.Build(ctx, dir, engine.Job{Chain: chain, Shift: shift, Workers: s.o.Workers}); err != nil {
			return "", fmt.Errorf("shift with engine %s: %w", b.Name(), err)
		}
		return b.Lower(dir), nil
	}
	return "", fmt.Errorf("no engine that builds works here: %s", s.choice.Reason())
}
