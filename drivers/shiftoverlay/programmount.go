package shiftoverlay

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containers/storage/pkg/idtools"

	"github.com/shiftoverlay/shiftoverlay/internal/failpoint"
	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	mounts "github.com/shiftoverlay/shiftoverlay/internal/mount"
	"github.com/shiftoverlay/shiftoverlay/internal/ovl"
	"github.com/shiftoverlay/shiftoverlay/internal/shifter"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// programMount is one mount that a Program makes.
type programMount struct {
	p    *Program
	call *ProgramCall
	id   string // of the layer
	dir  string // its own folder
	// lowers are the call's, uppermost first; chain are those of them that
	// belong to the image.
	lowers []programLower
	chain  []shifter.Layer
	// foreign says that the library has shifted the layer itself, by changing
	// owners.
	foreign bool
}

// programLower is one of the folders of a call.
type programLower struct {
	name  string // as it is to be called
	real  string // where it is
	layer string // the folder of its layer
}

// newMount finds out which layers a call is about, and gives them the kernel's
// whiteouts.
func (p *Program) newMount(c *ProgramCall) (*programMount, error) {
	m := &programMount{p: p, call: c, dir: c.layerDir()}
	m.id = filepath.Base(m.dir)
	names := c.Lowers
	if slices.ContainsFunc(names, m.isMapped) {
		// For a mapping that it thinks too much for mount programs, such a library
		// has changed the owners before.
		offered := c.Mapping == nil || idtools.IsContiguous(idMaps(c.Mapping.UIDs)) && idtools.IsContiguous(idMaps(c.Mapping.GIDs))
		m.foreign = !offered
		var err error
		if names, err = m.listed(); err != nil {
			return nil, err
		}
	}
	for _, name := range names {
		real, err := filepath.EvalSymlinks(name)
		if err != nil {
			return nil, fmt.Errorf("a layer of the image is damaged: %w: remove the image and pull it again", err)
		}
		l := programLower{name: name, real: real, layer: filepath.Dir(real)}
		m.lowers = append(m.lowers, l)
		switch {
		case l.layer == m.dir && filepath.Base(l.real) == "empty":
		case l.layer == m.dir:
			m.foreign = m.foreign || c.Upper != "" || filepath.Base(l.real) != "diff"
		default:
			m.addToChain(l)
		}
	}
	notes := filepath.Join(p.runHome, "read-only")
	for _, l := range m.lowers {
		if err := convertLayer(l.layer, notes); err != nil {
			return nil, err
		}
	}
	if c.Upper != "" {
		return m, convertLayer(m.dir, notes)
	}
	return m, nil
}

// isMapped tells whether a lower is a mount, made for this call only, that has the
// mapping of the container already: before version 1.46 or so, the library passes
// those to mount programs, too.
func (m *programMount) isMapped(lower string) bool {
	return strings.HasPrefix(lower, filepath.Join(m.dir, "mapped")+"/")
}

// listed names the lowers as the library would without mapped mounts: from the
// layer's list and the folders beside each "diff".
func (m *programMount) listed() ([]string, error) {
	var out []string
	add := func(diff string) error {
		real, err := filepath.EvalSymlinks(diff)
		if err != nil {
			return fmt.Errorf("find layer: %w", err)
		}
		dirs, err := folders(real)
		if err != nil {
			return err
		}
		for i := range dirs {
			if i == 0 {
				out = append(out, diff)
			} else {
				out = append(out, diff+"/../diff"+strconv.Itoa(i))
			}
		}
		return nil
	}
	own := filepath.Join(m.dir, "diff")
	if err := add(own); err != nil {
		return nil, err
	}
	if m.call.Upper != "" {
		out = out[1:]
	}
	list, err := os.ReadFile(filepath.Join(m.dir, "lower"))
	if err != nil {
		return nil, fmt.Errorf("read list of lowers: %w", err)
	}
	homes := m.p.homes()
	for _, link := range ovl.SplitLowers(strings.TrimSpace(string(list))) {
		at := slices.IndexFunc(homes, func(home string) bool {
			_, err := os.Stat(home + "/" + link)
			return err == nil
		})
		if at < 0 {
			return nil, fmt.Errorf("layer %s of the image below %s is not in %s: with a mount program, additional image stores need containers/storage 1.46 or newer", link, m.id, m.p.home)
		}
		if err := add(homes[at] + "/" + link); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// addToChain appends a folder of the image.
func (m *programMount) addToChain(l programLower) {
	id := filepath.Base(l.layer)
	if n := len(m.chain); n > 0 && m.chain[n-1].ID == id {
		m.chain[n-1].Dirs = append(m.chain[n-1].Dirs, l.real)
	} else {
		m.chain = append(m.chain, shifter.Layer{ID: id, Dirs: []string{l.real}})
	}
	m.p.remember(filepath.Dir(l.layer))
}

// names are the lowers' names, uppermost first.
func (m *programMount) names() []string {
	out := make([]string, len(m.lowers))
	for i, l := range m.lowers {
		out[i] = l.name
	}
	return out
}

// split gives the folder of a container's layer itself, and the names of those
// below: one that is mounted to be read is the uppermost lower.
func (m *programMount) split() (upper string, below []string) {
	below = m.names()
	if m.call.Upper != "" {
		return m.call.Upper, below
	}
	return m.lowers[0].real, below[1:]
}

// options are those of the call that are the kernel's, and metacopy=on: what was
// written with it can only be read with it.
func (m *programMount) options() ovl.Options {
	out := slices.DeleteFunc(slices.Clone(m.call.Options), notKernels)
	if _, set := out.Value("metacopy"); !set && m.p.report.Metacopy.OK() && (driverOptions{mount: out}).metacopyConflict() == "" {
		out = append(out, "metacopy=on")
	}
	return out
}

// plain mounts folders, uppermost first, with more options.
func (m *programMount) plain(lowers []string, more ovl.Options) error {
	return m.classic(m.p.home, lowers, more)
}

// classic is plain with names shortened that are below base, which becomes the
// current directory.
func (m *programMount) classic(base string, lowers []string, more ovl.Options) error {
	if err := os.Chdir(base); err != nil {
		return fmt.Errorf("enter the layers' folder: %w", err)
	}
	short := make([]string, len(lowers))
	for i, l := range lowers {
		short[i] = strings.TrimPrefix(l, base+"/")
	}
	err := mounts.Classic{
		Lowers: short, Upper: m.call.Upper, Work: m.call.Work, Label: m.call.Label, Flags: m.call.flags(),
		Options: append(m.options(), more...),
	}.Mount(m.call.Target)
	failpoint.Hit("program-mounted")
	return err
}

// mountLower mounts the layer with a shifted lower.
func (m *programMount) mountLower(l shifter.Lower, mapping idshift.Mapping) error {
	switch {
	case len(l.Data) > 0:
		return m.overlay(mounts.Overlay{Tree: l.Tree, Data: l.Data, DataTrees: l.DataTrees}, l.Path)
	case len(l.Parts) > 0:
		return m.overlay(mounts.Overlay{Parts: l.Parts}, "")
	case l.Tree != nil:
		return m.p.attached(m.id, l.Tree, func(at string) error { return m.plain(m.above(at), addXino(nil)) })
	case l.Path != "":
		return m.plain(m.above(l.Path), nil)
	case len(m.chain) == 0:
		return m.plain(m.names(), nil)
	}
	return m.idmapped(mapping)
}

// above lists the lowers with one more above the image.
func (m *programMount) above(dir string) []string {
	own := slices.IndexFunc(m.lowers, func(l programLower) bool { return l.layer != m.dir })
	return slices.Insert(m.names(), own, dir)
}

// overlay mounts the layer with the lowers of o, and above those a folder unless
// that is "".
func (m *programMount) overlay(o mounts.Overlay, above string) error {
	o.Upper, o.Work, o.Label, o.Flags, o.Options = m.call.Upper, m.call.Work, m.call.Label, m.call.flags(), m.options()
	if o.Tree != nil {
		o.Options = addXino(o.Options)
	}
	for _, own := range m.lowers {
		if own.layer == m.dir {
			o.Above = append(o.Above, own.real)
		}
	}
	if above != "" {
		o.Above = append(o.Above, above)
	}
	return m.p.show(o, m.id, m.call.Target)
}

// idmapped mounts the image's layers through idmapped mounts of the folders of
// all layers, one for each store.
func (m *programMount) idmapped(mapping idshift.Mapping) error {
	var homes []string
	for _, l := range m.lowers {
		if home := filepath.Dir(l.layer); l.layer != m.dir && !slices.Contains(homes, home) {
			homes = append(homes, home)
		}
	}
	return m.through(homes, mapping, func(at []string) error {
		lowers := make([]string, len(m.lowers))
		for i, l := range m.lowers {
			lowers[i] = l.real
			if l.layer == m.dir {
				continue
			}
			home := filepath.Dir(l.layer)
			below := strings.TrimPrefix(l.real, home)
			if link, ok := strings.CutPrefix(l.name, home+"/l/"); ok {
				below = "/l/" + link // shorter
			}
			lowers[i] = at[slices.Index(homes, home)] + below
		}
		return m.classic(at[0], lowers, nil)
	})
}

// through calls do while folders are shown, with a mapping, at others.
func (m *programMount) through(folders []string, mapping idshift.Mapping, do func(at []string) error) error {
	ns, err := userNS(mapping)
	if err != nil {
		return fmt.Errorf("make a user namespace: %w", err)
	}
	defer linux.Close(ns)
	var next func(at []string) error
	next = func(at []string) error {
		n := len(at)
		if n == len(folders) {
			return do(at)
		}
		t, err := mounts.CloneOne(folders[n])
		if err != nil {
			return err
		}
		defer t.Close()
		if err := t.Idmap(ns); err != nil {
			return err
		}
		return m.p.attached(m.id+"."+strconv.Itoa(n), t, func(here string) error { return next(append(at, here)) })
	}
	return next(nil)
}

// backwards mounts a container's layer with container IDs, for reading: the IDs
// in its folder are mapped back, and the image below is as it is. IDs that
// the mapping does not have are shown as nobody's.
func (m *programMount) backwards(rec *record) error {
	if !m.p.report.IdmapMount.OK() {
		return fmt.Errorf("layer %s was written by a container with the mapping %s, and showing it without takes idmapped mounts, which %s on kernel %s does not have (%s): use driver = %q",
			m.id, rec.Mapping, m.p.report.FileSystem, m.p.report.Kernel, m.p.report.IdmapMount, driverName)
	}
	upper, below := m.split()
	m.call.Upper, m.call.Work = "", ""
	return m.through([]string{upper}, rec.Mapping.Invert(), func(at []string) error {
		return m.plain(append(at, below...), nil)
	})
}

// remember notes the home of another store, so that its layers are known when
// the cache is trimmed.
func (p *Program) remember(home string) {
	if home == p.home {
		return
	}
	links := filepath.Join(p.runHome, "stores")
	if os.MkdirAll(links, 0o700) == nil {
		_ = os.Symlink(home, filepath.Join(links, nameOfPath(home)))
	}
}

// homes lists where layers are: in this store, and in others that were seen.
func (p *Program) homes() []string {
	others, _ := filepath.Glob(filepath.Join(p.runHome, "stores", "*"))
	return append([]string{p.home}, others...)
}

// inOtherStore tells whether another store that was seen has a layer.
func (p *Program) inOtherStore(id string) bool {
	return layerIn(p.homes()[1:], id)
}
