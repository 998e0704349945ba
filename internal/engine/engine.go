// Package engine says what an engine is, a way to show an image to a
// container with shifted owners, and which of several to take.
//
// To add one: a folder below this one with a type that implements Engine
// (and Builder or Imager, if it makes something that is worth keeping), a line
// in the list of package shifter, and a call of the conformance suite, package
// enginetest, in its tests.
package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/shiftoverlay/shiftoverlay/internal/mount"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// Auto is the setting that lets the cheapest engine be chosen that works.
const Auto = "auto"

// Env is what an engine may ask about the place it is to work in. Each field
// is empty if the thing works, otherwise it says why not.
type Env struct {
	Idmap         string // overlay on idmapped lowers, done by the kernel
	IdmapACL      string // IDs in POSIX ACLs of such lowers
	IdmapDetached string // such lowers that are in no mount table
	Metacopy      string // hand-made metadata-only files in a lower
	Erofs         string // EROFS images as lowers, in any way
	// ErofsFile, ErofsData and ErofsIdmap are better ways to use such images:
	// without a loop device, with the layers as data-only lowers, and with one
	// image for all mappings.
	ErofsFile, ErofsData, ErofsIdmap string
	// Rootless says that this is not the root of the machine but that of a user
	// namespace: overlay's attributes are user.overlay.* (mount option
	// userxattr), metadata-only files are followed into data-only lowers only,
	// and nobody can make devices.
	Rootless bool
}

// Overlay says which attributes are overlay's for the root of the machine, and for
// that of a user namespace.
func Overlay(rootless bool) idshift.Namespace {
	if rootless {
		return idshift.UserOverlay
	}
	return idshift.TrustedOverlay
}

// Engine is one way to shift. Implementations have no state and are safe for
// concurrent use.
type Engine interface {
	// Name is the engine's name in settings, records and messages.
	Name() string
	// Check returns nil if the engine works in env, otherwise an error that
	// says why not, to be shown to the operator.
	Check(env Env) error
}

// Job describes a shifted lower that is to be made.
type Job struct {
	// Chain is the image's layer folders, uppermost first. The engine reads
	// them and changes nothing in them.
	Chain []string
	// Shift holds the rules for one inode.
	Shift *idshift.Shift
	// Rootless is that of Env.
	Rootless bool
	// Workers is the number of threads to use; 0 stands for one per
	// processor.
	Workers int
	// Done, if set, is told how many more files and folders are done, for those who
	// wait. Several threads call it at the same time, and wait while it does.
	Done func(entries int)
}

// Walk reads the chain as one tree (idshift.Walk).
func (j Job) Walk(ctx context.Context, sink idshift.Sink) error {
	o := idshift.WalkOptions{Workers: j.Workers, Done: j.Done, Namespace: Overlay(j.Rootless)}
	return idshift.Walk(ctx, j.Chain, o, sink)
}

// Builder is an Engine that makes a shifted lower on disk.
type Builder interface {
	Engine
	// Format is the version of what Build makes; a change makes all that was
	// built before useless.
	Format() int
	// Build makes the shifted lower in dir, an empty folder. Whoever calls
	// removes dir if it fails. It returns soon after ctx is cancelled. The
	// result depends on the job only and needs no other place than dir and
	// the chain.
	Build(ctx context.Context, dir string, job Job) error
	// Lower returns the folder below dir that is to be put above the chain as
	// overlay's uppermost lower.
	Lower(dir string) string
}

// Redirector is a Builder whose files lead to data-only lowers.
type Redirector interface {
	Builder
	// Data returns in what overlay is to look for data, in this order, instead of
	// having the chain as ordinary lowers: folders, and then trees that the
	// caller closes. There is nothing if the chain is to be mounted as with any
	// Builder. dir is what Build made of the chain.
	Data(dir string, chain []string) (folders []string, trees []*mount.Tree, err error)
}

// Resumer is a Builder that can go on where a process died.
type Resumer interface {
	Builder
	// Resume does what Build does, in the folder in which the process died, in
	// this boot, that was at Build or Resume for the same job; the layers are the
	// same inodes. After an error dir is worth nothing.
	Resume(ctx context.Context, dir string, job Job) error
}

// Recycler is a Builder that makes a shifted lower for one mapping out of one
// that it made of the same chain for another, for less than a new one costs.
type Recycler interface {
	Builder
	// Recycle turns what Build made in dir, for any mapping, into what Build
	// would make for job. After an error dir is worth nothing.
	Recycle(ctx context.Context, dir string, job Job) error
}

// Imager is an Engine that makes a file system image of a chain once, the
// template, and shows that under any mapping for little or nothing.
type Imager interface {
	Engine
	// Format is the version of what Template and Patch make, Variant the kind
	// of image that is made here. A change of either makes all that was built
	// before useless.
	Format() int
	Variant() string
	// Template makes the template in dir, an empty folder, from job.Chain; there
	// is no job.Shift. Whoever calls removes dir if it fails.
	Template(ctx context.Context, dir string, job Job) error
	// Unfit says why Auto should not take this engine for the image whose
	// template, or what Patch made of it, is in dir, "" if it may.
	Unfit(dir string) (reason string, err error)
	// Patches tells whether each mapping needs an image of its own, which Patch
	// makes in dir from the template for job.Shift. Otherwise the kernel maps
	// the template's IDs.
	Patches() bool
	Patch(ctx context.Context, dir, template string, job Job) error
	// Mount mounts the image in dir, with the IDs of the user namespace userns
	// unless that is negative. The caller closes the tree.
	Mount(dir string, userns int) (*mount.Tree, error)
	// DataOnly tells whether the chain is to be mounted as data-only lowers
	// below the image in dir.
	DataOnly(dir string) (bool, error)
}

// Mapper is an Engine that makes nothing and shows the chain's folders themselves.
type Mapper interface {
	Engine
	// Parts returns the chain's folders as lowers with the IDs of the user
	// namespace userns. The caller closes the parts' trees, which may be the same
	// for several. An error means that overlay's own way has to be taken.
	Parts(chain []string, userns int) ([]mount.Part, error)
	// MakesParts tells whether Parts can be used here.
	MakesParts() bool
}

// Lossy is an Engine that works in some places without keeping everything.
type Lossy interface {
	Engine
	// Avoid returns why Auto should pass the engine over in env although it
	// works, or nil.
	Avoid(env Env) error
}

// Noter is an Engine with something that an operator should know of it.
type Noter interface {
	Engine
	// Note is put after the reason of a choice.
	Note() string
}

// ErrDamaged is reached by errors about what an engine made before: it is not,
// or not any more, what the engine would make.
var ErrDamaged = errors.New("damaged")

// UnfitError says why an engine should not be used for one image, although it
// works here.
type UnfitError struct {
	Engine string
	Reason string
}

// Error implements error.
func (e *UnfitError) Error() string { return e.Engine + ": " + e.Reason }

// Refusal says why an engine cannot be used.
type Refusal struct {
	Engine string
	Reason error
}

// Error implements error.
func (r *Refusal) Error() string { return fmt.Sprintf("%s: %v", r.Engine, r.Reason) }

// Unwrap returns the reason.
func (r *Refusal) Unwrap() error { return r.Reason }

// Choice is an engine and why no cheaper one was taken.
type Choice struct {
	Engine Engine
	// Forced says that a setting, not a probe, made the choice.
	Forced bool
	// Refused holds a refusal for each cheaper engine.
	Refused []*Refusal
}

// Reason puts in words why this engine was chosen, and what is to be known of
// it.
func (c Choice) Reason() string {
	reason := c.why()
	if n, ok := c.Engine.(Noter); ok {
		reason += "; note: " + n.Note()
	}
	return reason
}

func (c Choice) why() string {
	if c.Forced {
		return "set in shiftoverlay.conf"
	}
	if len(c.Refused) == 0 {
		return "cheapest engine"
	}
	reasons := make([]string, len(c.Refused))
	for i, r := range c.Refused {
		reasons[i] = r.Error()
	}
	return strings.Join(reasons, "; ")
}

// ErrUnknown is the error of Choose for a name that no engine has.
var ErrUnknown = errors.New("unknown shift engine")

// Choose returns the first engine of list, which is in order of cost, that
// works in env, or the one called name if that is not Auto. An engine that is
// asked for by name and does not work is a *Refusal.
func Choose(list []Engine, name string, env Env) (Choice, error) {
	var c Choice
	names := []string{Auto}
	for _, e := range list {
		names = append(names, e.Name())
		if name != Auto && name != e.Name() {
			continue
		}
		err := e.Check(env)
		if l, ok := e.(Lossy); ok && err == nil && name == Auto {
			err = l.Avoid(env)
		}
		if err == nil {
			c.Engine, c.Forced = e, name != Auto
			return c, nil
		}
		c.Refused = append(c.Refused, &Refusal{Engine: e.Name(), Reason: err})
	}
	if len(c.Refused) == 0 {
		return c, fmt.Errorf("%w %q: choose one of %s", ErrUnknown, name, strings.Join(names, ", "))
	}
	if name != Auto {
		return c, fmt.Errorf("shift engine does not work here: %w; set engine = %q in shiftoverlay.conf to take the cheapest that does", c.Refused[0], Auto)
	}
	return c, fmt.Errorf("no shift engine works here: %s", c.Reason())
}
