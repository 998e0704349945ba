// Package engine says what an engine is, a way to show an image to a
// container with shifted owners, and which of several to take.
//
// To add one: a folder below this one with a type that implements Engine
// (and Builder, if it makes something that is worth keeping), a line in the
// list of package shifter, and a call of the conformance suite, package
// enginetest, in its tests.
package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// Auto is the setting that lets the cheapest engine be chosen that works.
const Auto = "auto"

// Env is what an engine may ask about the place it is to work in. Each field
// is empty if the thing works, otherwise it says why not.
type Env struct {
	Idmap    string // overlay on idmapped lowers, done by the kernel
	Metacopy string // hand-made metadata-only files in a lower
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
	// Workers is the number of threads to use; 0 stands for one per
	// processor.
	Workers int
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

// Reason puts in words why this engine was chosen.
func (c Choice) Reason() string {
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
