package shiftoverlay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	graphdriver "github.com/containers/storage/drivers"

	"github.com/shiftoverlay/shiftoverlay/internal/cache"
	"github.com/shiftoverlay/shiftoverlay/internal/shifter"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// ErrNotManaged is the error of Manage for a driver that keeps no shifted
// lowers.
var ErrNotManaged = errors.New("no shifted lowers to manage")

// Manager is what an operator's tools know of a store's shifted lowers and may
// do to them, beside whoever runs containers there. Unless a method says
// otherwise it takes no lock of the store. It is safe for concurrent use.
type Manager struct {
	d *Driver
	// Pace, if set, is called by the threads of Warm after each folder, several at
	// the same time. They wait while it does, so it can give way to others.
	Pace func()
}

// Manage returns the manager of a driver that Init made. From then on, the driver
// does not trim the cache by itself: looking must not change anything.
func Manage(driver graphdriver.Driver) (*Manager, error) {
	m, ok := driver.(interface{ manager() (*Manager, error) })
	if !ok {
		return nil, fmt.Errorf("driver %s: %w", driver, ErrNotManaged)
	}
	return m.manager()
}

func (d *Driver) manager() (*Manager, error) {
	if d.shifts == nil {
		return nil, fmt.Errorf("driver %s mounts through a mount program (storage.conf, or the history of the store %s): %w", driverName, filepath.Dir(d.home), ErrNotManaged)
	}
	d.managed = true
	return &Manager{d: d}, nil
}

// Engines describes every engine, cheapest first.
func (m *Manager) Engines() []shifter.EngineState { return m.d.shifts.Engines() }

// Engine returns the engine in use, and why it is not a cheaper one.
func (m *Manager) Engine() (name, reason string) { return m.d.shifts.Engine() }

// CacheDir is the folder of the shifted lowers.
func (m *Manager) CacheDir() string { return m.d.cache.Dir() }

// Limits returns the bounds of shiftoverlay.conf; 0 stands for none.
func (m *Manager) Limits() (size int64, age time.Duration) { return m.d.trim.MaxSize, m.d.trim.MaxAge }

// Entry is a shifted lower in the cache.
type Entry struct {
	cache.Info
	// Engine is the engine that made it, "" if that cannot be read.
	Engine string
	// Layers are the IDs of the layers that it was made of, uppermost first.
	Layers []string
	// Mapping is nil for what serves all mappings.
	Mapping *idshift.Mapping
	// Path is the folder that the engine filled.
	Path string
}

// Entries lists the cache. With an error, the entries that could be read are
// returned all the same.
func (m *Manager) Entries(ctx context.Context) ([]Entry, error) {
	infos, err := m.d.cache.List(ctx)
	out := make([]Entry, len(infos))
	for i, info := range infos {
		out[i] = m.entry(info)
	}
	return out, err
}

// entry reads what the shifter noted.
func (m *Manager) entry(info cache.Info) Entry {
	e := Entry{Info: info, Path: m.d.cache.Path(info.Ref)}
	var meta shifter.Meta
	if json.Unmarshal(info.Meta, &meta) != nil {
		return e
	}
	valid := meta.Mapping == nil
	if !valid {
		_, err := idshift.NewMapping(meta.Mapping.UIDs, meta.Mapping.GIDs)
		valid = err == nil
	}
	if valid {
		e.Engine, e.Layers, e.Mapping = meta.Engine, meta.Layers, meta.Mapping
	}
	return e
}

// Doomed is an entry that is to go, and why.
type Doomed struct {
	Entry
	Why string
}

// trimOptions are the driver's own, with other limits.
func (m *Manager) trimOptions(size int64, age time.Duration) cache.TrimOptions {
	o := m.d.trim
	o.MaxSize, o.MaxAge = size, age
	return o
}

// Foresee says what Prune would remove, and removes nothing.
func (m *Manager) Foresee(ctx context.Context, size int64, age time.Duration) ([]Doomed, error) {
	list, err := m.d.cache.Foresee(ctx, m.trimOptions(size, age))
	out := make([]Doomed, len(list))
	for i, x := range list {
		out[i] = Doomed{m.entry(x.Info), x.Why}
	}
	return out, err
}

// Prune removes what no container needs, running or stopped: entries of which
// the layers are gone or that cannot be used any more, those unused for age, and
// the least recently used as long as all entries take more than size; 0 stands
// for no bound. It returns what it removed, also with an error.
func (m *Manager) Prune(ctx context.Context, size int64, age time.Duration) ([]Entry, error) {
	removed, err := m.d.cache.Trim(ctx, m.trimOptions(size, age))
	out := make([]Entry, len(removed))
	for i, info := range removed {
		out[i] = m.entry(info)
	}
	return out, err
}

// Warmed is what Warm made or found.
type Warmed struct {
	// Engine is the engine that the image is shown with.
	Engine string
	// Ref is the entry; zero if the engine needs none.
	Ref cache.Ref
	// Built says that it was not there before.
	Built bool
}

// Warm makes what a container of the image whose uppermost layer is given will
// need under a mapping, exactly as its first mount would, so that this mount
// finds it. The entry cannot be removed or recycled until Release is called
// with the same user, a name from WarmUser; afterwards it is an entry like any
// other that was just used. No lock of the store is held while it builds, and half of
// the processors are left to others, unless shiftoverlay.conf has a number of workers.
func (m *Manager) Warm(ctx context.Context, layer string, mapping idshift.Mapping, user string) (w Warmed, err error) {
	if _, _, ok := mapping.ToHost(0, 0); !ok {
		return w, fmt.Errorf("prepare layer %s: the mapping %s has no root user: container ID 0 must have a host ID", layer, mapping)
	}
	if mapping.IsIdentity() {
		return w, nil // a plain mount
	}
	chain, err := m.chain(layer)
	if err != nil {
		return w, err
	}
	plan, err := m.d.shifts.Plan(shifter.Request{Chain: chain, Mapping: mapping})
	if err != nil {
		return w, fmt.Errorf("prepare layer %s: %w", layer, err)
	}
	for step := &plan; step != nil; step = step.Else {
		if step.Job.Workers == 0 {
			step.Job.Workers = max(1, runtime.NumCPU()/2) // others are at work here
		}
	}
	if m.Pace != nil {
		plan.Pace(m.Pace)
	}
	if !warming(user) {
		return w, fmt.Errorf("prepare layer %s: user %q is no process that lives; is /proc mounted?", layer, user)
	}
	start := time.Now()
	lower, err := m.d.shifts.Prepare(ctx, plan, user)
	if err != nil {
		return w, fmt.Errorf("prepare layer %s: %w", layer, err)
	}
	w = Warmed{Engine: lower.Engine, Ref: lower.Ref}
	if w.Ref != (cache.Ref{}) {
		var info cache.Info
		if info, err = m.d.cache.Find(ctx, w.Ref); err == nil {
			w.Built = !info.Built.Before(start)
		}
	}
	return w, errors.Join(err, lower.Close())
}

// Release ends the hold of Warm.
func (m *Manager) Release(ref cache.Ref, user string) error { return m.d.shifts.Release(ref, user) }

// Settle has an entry written to the disk, so that it is believed after a
// crash or a reboot. It does nothing for one that is made again in no time.
func (m *Manager) Settle(ctx context.Context, ref cache.Ref) error {
	info, err := m.d.cache.Find(ctx, ref)
	if err != nil || info.Disposable || info.Durable {
		return err
	}
	return m.d.cache.MarkDurable(ctx, ref)
}

// chain lists an image with all folders that overlay would put into a mount of
// a container of it.
func (m *Manager) chain(layer string) ([]shifter.Layer, error) {
	p, err := m.d.paths(layer)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(p.upper); err != nil {
		return nil, fmt.Errorf("layer %s of the image is damaged: %w: remove the image and pull it again", layer, err)
	}
	dirs, err := folders(p.upper)
	if err != nil {
		return nil, err
	}
	below, err := p.chain()
	if err != nil {
		return nil, err
	}
	return slices.Concat([]shifter.Layer{{ID: layer, Dirs: dirs}}, below), nil
}

// warmPrefix begins the names of those who warm, for as long as they do.
const warmPrefix = "warm-"

// WarmUser is the name of this process as a user of Warm.
func WarmUser() string { return warmName(os.Getpid()) }

// warmName is the name of a process, "" if there is no such process. A process
// ID comes again, but not with the same start time.
func warmName(pid int) string {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	// What follows the name, which may hold anything, is the third field on; the
	// start time is the 22nd (proc_pid_stat(5)).
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if err != nil || len(fields) < 20 {
		return ""
	}
	return warmPrefix + strconv.Itoa(pid) + "-" + fields[19]
}

// passing is the name of a process that needs something for a user for as long as
// it lives: its own name, and a part of the user's. Without a name of its own
// (there is no /proc) it is the user's.
func passing(process, user string) string {
	if process == "" {
		return user
	}
	return process + "-" + user[:min(len(user), 64)]
}

// warming says whether a user is a process that warms, or that needs something
// for a user, and lives.
func warming(user string) bool {
	text, ok := strings.CutPrefix(user, warmPrefix)
	words := strings.SplitN(text, "-", 3)
	n, err := strconv.Atoi(words[0])
	if !ok || err != nil || n <= 0 {
		return false
	}
	name := warmName(n)
	return name != "" && (user == name || strings.HasPrefix(user, name+"-"))
}
