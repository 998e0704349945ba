// Package shifter joins the rooms of the house: it decides with which engine
// an image is shown under a mapping (Plan, a pure value) and makes what the
// plan needs (Prepare).
package shifter

import (
	"crypto/sha256"
	"encoding/binary"
	"io"
	"slices"
	"time"

	"github.com/shiftoverlay/shiftoverlay/internal/cache"
	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/copyup"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/erofs"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/idmap"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/metacopy"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// engines is every engine, cheapest first, as it works best in env.
func engines(env engine.Env) []engine.Engine {
	return []engine.Engine{idmap.New(env), erofs.New(env), metacopy.Engine{}, copyup.Engine{}}
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
	// UserNS makes a user namespace with a mapping and returns a descriptor of
	// it, which the caller closes. It is needed if Env.ErofsIdmap or
	// Env.IdmapDetached is empty.
	UserNS func(m idshift.Mapping) (int, error)
	// Passing, if set, makes of a user one that needs something only as long as
	// this process lives: whoever says which users are alive must know.
	Passing func(user string) string
	// Slow, if set, is called each second while Prepare waits for something to be
	// made, by itself or by another process, with the number of files and folders
	// that this one has done. It is called in another goroutine, and not any more
	// when Prepare has returned.
	Slow func(p Plan, since time.Duration, files int64)
	// Later, if set, is given work that no mount need wait for; else that has a
	// goroutine of its own.
	Later func(work func())
	// Debugf, if set, is told about decisions and durations.
	Debugf func(format string, args ...any)
}

// Shifter makes shifted lowers. It is safe for concurrent use.
type Shifter struct {
	o      Options
	choice engine.Choice
	// usable are the chosen engine and those that may take its place for an
	// image that it is not fit for.
	usable []engine.Engine
}

// New returns a Shifter. An engine that is unknown or was asked for by name
// and does not work here is an error.
func New(o Options) (*Shifter, error) {
	if o.Debugf == nil {
		o.Debugf = func(string, ...any) {}
	}
	if o.Passing == nil {
		o.Passing = func(user string) string { return user }
	}
	if o.Later == nil {
		o.Later = func(work func()) { go work() }
	}
	list := engines(o.Env)
	c, err := engine.Choose(list, o.Engine, o.Env)
	if err != nil {
		return nil, err
	}
	s := &Shifter{o: o, choice: c, usable: []engine.Engine{c.Engine}}
	if !c.Forced {
		at := slices.Index(list, c.Engine)
		for _, e := range list[at+1:] {
			if e.Check(o.Env) == nil {
				s.usable = append(s.usable, e)
			}
		}
	}
	return s, nil
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
	// Engine is the engine.
	Engine engine.Engine
	// Ref is where the cache keeps what is made for the mapping; zero if there
	// is nothing to make.
	Ref cache.Ref
	// Template is where the cache keeps what is made for all mappings of the
	// chain, if the engine is an Imager. Where nothing is made for a single
	// mapping, it is the same as Ref.
	Template cache.Ref
	// Job is what the engine is to do.
	Job engine.Job
	// Layers are the IDs of the chain, uppermost first.
	Layers []string
	// Mapping is the request's.
	Mapping idshift.Mapping
	// Else is what to do if the engine turns out not to be fit for the image;
	// nil if the engine is to be used all the same.
	Else *Plan
}

// Pace has those who do a plan call rest after each folder, several at the same
// time. They wait while it does, so it can give way to others.
func (p *Plan) Pace(rest func()) {
	for ; p != nil; p = p.Else {
		p.Job.Done = func(int) { rest() }
	}
}

// Plan decides what to do: nothing for an empty chain, or with an engine that
// does not build. Otherwise a mapping that is not valid is an error.
func (s *Shifter) Plan(r Request) (Plan, error) {
	var p, next *Plan
	for _, e := range slices.Backward(s.usable) {
		one, err := s.plan(e, r)
		if err != nil {
			return Plan{Engine: e, Mapping: r.Mapping}, err
		}
		p, next = &one, p
		p.Else = next
	}
	return *p, nil
}

// plan is Plan for one engine.
func (s *Shifter) plan(e engine.Engine, r Request) (Plan, error) {
	p := Plan{Engine: e, Mapping: r.Mapping}
	b, builds := e.(engine.Builder)
	i, images := e.(engine.Imager)
	for _, l := range r.Chain {
		p.Layers = append(p.Layers, l.ID)
		p.Job.Chain = append(p.Job.Chain, l.Dirs...)
	}
	if !builds && !images || len(r.Chain) == 0 {
		return p, nil
	}
	shift, err := idshift.NewShift(r.Mapping, s.o.Unmapped)
	if err != nil {
		return p, err
	}
	p.Job.Shift, p.Job.Workers, p.Job.Rootless = shift, s.o.Workers, s.o.Env.Rootless
	ref := func(format int, variant, mapping string) cache.Ref {
		return cache.Ref{Layer: p.Layers[0], Key: key(p.Layers, e.Name()+variant, format, mapping, s.o.Unmapped)}
	}
	mk := r.Mapping.Key()
	switch {
	case builds:
		p.Ref = ref(b.Format(), s.variant(), string(mk[:]))
	case i.Patches():
		p.Template = ref(i.Format(), "/"+i.Variant(), "")
		p.Ref = ref(i.Format(), "/"+i.Variant(), string(mk[:]))
	default:
		p.Template = ref(i.Format(), "/"+i.Variant(), "")
		p.Ref = p.Template
	}
	return p, nil
}

// variant tells apart what Builders make with the two namespaces of overlay's
// attributes.
func (s *Shifter) variant() string {
	if s.o.Env.Rootless {
		return "/rootless"
	}
	return ""
}

// keyVersion changes when the meaning of a key's parts does.
const keyVersion = "shiftoverlay-key-1"

// key names a shifted lower: all that its content depends on, each part with
// its length before it. what is the engine and the kind of thing it makes;
// mapping is empty for what does not depend on it.
func key(layers []string, what string, format int, mapping string, u idshift.Unmapped) cache.Key {
	h := sha256.New()
	part := func(s string) {
		_ = binary.Write(h, binary.LittleEndian, uint32(len(s))) //nolint:gosec // short strings
		_, _ = io.WriteString(h, s)
	}
	part(keyVersion)
	part(what)
	_ = binary.Write(h, binary.LittleEndian, uint32(format)) //nolint:gosec // a small number
	if mapping == "" {
		u = idshift.Overflow // it is of no consequence where nothing is shifted
	}
	part(u.String())
	part(mapping)
	for _, l := range layers {
		part(l)
	}
	return cache.Key(h.Sum(nil))
}
