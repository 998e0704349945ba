package fsop

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// Player changes a tree at random. The same seed on the same tree does the
// same. It is not safe for concurrent use.
type Player struct {
	Ops
	// Devices allows device nodes, which need root outside of the container.
	Devices bool
	// Log, if set, is told each operation before it is done.
	Log func(operation string)

	rng   *rand.Rand
	paths []string
	types map[string]uint32
}

// NewPlayer returns a Player for the tree of o.
func NewPlayer(o Ops, seed uint64) *Player {
	return &Player{Ops: o, rng: rand.New(rand.NewPCG(seed, 0x5eed))} //nolint:gosec // not for secrets
}

// Play does n operations. What a program would be refused in the same way,
// such as renaming a directory into itself or, without redirect_dir, at all,
// counts as done.
func (p *Player) Play(n int) error {
	for range n {
		if err := p.look(); err != nil {
			return err
		}
		op := p.pick()
		if op.do == nil {
			continue
		}
		if p.Log != nil {
			p.Log(op.text)
		}
		if err := op.do(); err != nil && !refused(err) {
			return fmt.Errorf("%s: %w", op.text, err)
		}
	}
	return nil
}

// refused tells whether an error is one that any tree gives.
func refused(err error) bool {
	for _, e := range []error{unix.EXDEV, unix.ENOTEMPTY, unix.EEXIST, unix.EINVAL, unix.EISDIR, unix.ENOTDIR, unix.EMLINK} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// look reads which paths there are.
func (p *Player) look() error {
	paths, err := Paths(p.Root)
	if err != nil {
		return err
	}
	p.paths = paths
	p.types = make(map[string]uint32, len(paths))
	for _, name := range paths {
		st, err := p.Stat(name)
		if err != nil {
			return err
		}
		p.types[name] = st.Mode & unix.S_IFMT
	}
	return nil
}

// operation is something to do; do is nil if there is nothing to do it with.
type operation struct {
	text string
	do   func() error
}

// any returns a path of one of the types, "" if there is none.
func (p *Player) any(types ...uint32) string {
	var fit []string
	for _, name := range p.paths {
		for _, t := range types {
			if p.types[name] == t {
				fit = append(fit, name)
			}
		}
	}
	if len(fit) == 0 {
		return ""
	}
	return fit[p.rng.IntN(len(fit))]
}

// dir returns a directory, or the root as ".".
func (p *Player) dir() string {
	if d := p.any(unix.S_IFDIR); d != "" && p.rng.IntN(8) > 0 {
		return d
	}
	return "."
}

// name returns a path in some directory, which may exist: names are few, so
// that what was deleted comes back as something else.
func (p *Player) name() string {
	if p.rng.IntN(3) == 0 {
		if n := p.any(unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK); n != "" {
			return n
		}
	}
	names := []string{"a", "b", "c", "new", "sp ace", "ü", "\xff", "new\nline", "-dash", ".hidden", "wh.x", "conf.d", "passwd", "x", strings.Repeat("z", nameMax)}
	return path.Join(p.dir(), names[p.rng.IntN(len(names))])
}

// free returns a path where nothing is.
func (p *Player) free() string {
	for {
		n := p.name()
		if _, there := p.types[n]; !there {
			return n
		}
		if p.rng.IntN(20) == 0 {
			return path.Join(p.dir(), fmt.Sprintf("free%d", p.rng.Uint32()))
		}
	}
}

func (p *Player) content() string {
	sizes := []int{0, 1, 5, 100, 4096, 20000}
	n := sizes[p.rng.IntN(len(sizes))]
	return strings.Repeat(string(rune('A'+p.rng.IntN(26))), n)
}

func (p *Player) id() uint32 {
	ids := []uint32{0, 1, 33, 1000, 65534}
	return ids[p.rng.IntN(len(ids))]
}

func (p *Player) time() time.Time {
	times := []time.Time{
		time.Unix(p.rng.Int64N(2_000_000_000), p.rng.Int64N(1_000_000_000)),
		time.Unix(-1_000_000, 5), time.Unix(5_000_000_000, 999_999_999), time.Unix(0, 0),
	}
	return times[p.rng.IntN(len(times))]
}

// pick chooses an operation.
func (p *Player) pick() operation {
	const file, directory, link = unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK
	all := []uint32{file, directory, link, unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO}
	choose := []func() operation{
		p.create, p.create, p.makeDir, p.makeDir,
		func() operation {
			c := p.content()
			return on(p.any(file), "overwrite", func(n string) error { return p.Write(n, c) })
		},
		func() operation {
			c := p.content()
			return on(p.any(file), "append", func(n string) error { return p.Append(n, c) })
		},
		func() operation {
			size := p.rng.Int64N(200_000)
			return on(p.any(file), fmt.Sprintf("truncate %d", size), func(n string) error { return p.Truncate(n, size) })
		},
		p.chmod, p.chmod,
		func() operation {
			u, g := p.id(), p.id()
			return on(p.any(all...), fmt.Sprintf("chown %d:%d", u, g), func(n string) error { return p.Chown(n, u, g) })
		},
		func() operation {
			return on(p.any(file), "setcap", func(n string) error { return p.SetCap(n, 1<<10) })
		},
		p.acl, p.xattr,
		func() operation { return p.rename(p.any(file, link, unix.S_IFIFO)) },
		func() operation { return p.rename(p.any(directory)) },
		func() operation { return p.rename(p.any(directory)) },
		func() operation { return on(p.any(all...), "remove", p.Remove) },
		func() operation { return on(p.any(directory), "remove", p.Remove) },
		func() operation { return p.replace(p.any(directory)) },
		func() operation { return p.replace(p.any(all...)) },
		func() operation {
			to := p.free()
			return on(p.any(file, link, unix.S_IFIFO), fmt.Sprintf("link to %q", to), func(n string) error { return p.Link(n, to) })
		},
		func() operation {
			return on(p.free(), "symlink", func(n string) error { return p.Symlink("../some/where", n) })
		},
		p.node,
		func() operation {
			t := p.time()
			return on(p.any(all...), fmt.Sprintf("times %d", t.UnixNano()), func(n string) error { return p.Times(n, t) })
		},
	}
	return choose[p.rng.IntN(len(choose))]()
}

// on is an operation on one path.
func on(name, text string, do func(name string) error) operation {
	if name == "" {
		return operation{}
	}
	return operation{text: fmt.Sprintf("%s %q", text, name), do: func() error { return do(name) }}
}

func (p *Player) create() operation {
	c := p.content()
	return on(p.free(), fmt.Sprintf("create (%d bytes)", len(c)), func(n string) error { return p.Write(n, c) })
}

func (p *Player) makeDir() operation { return on(p.free(), "mkdir", p.Mkdir) }

func (p *Player) chmod() operation {
	modes := []uint32{0o600, 0o644, 0o755, 0o4755, 0o2755, 0o1777, 0o000, 0o640, 0o6711}
	m := modes[p.rng.IntN(len(modes))]
	n := p.any(unix.S_IFREG, unix.S_IFDIR, unix.S_IFIFO, unix.S_IFCHR)
	if p.rng.IntN(20) == 0 {
		n = "."
	}
	return on(n, fmt.Sprintf("chmod %#o", m), func(n string) error { return p.Chmod(n, m) })
}

func (p *Player) acl() operation {
	u, g := p.id(), p.id()
	if p.rng.IntN(2) == 0 {
		return on(p.any(unix.S_IFDIR), "setfacl -d", func(n string) error { return p.SetACL(n, idshift.ACLDefault, u, g) })
	}
	return on(p.any(unix.S_IFREG, unix.S_IFDIR), "setfacl", func(n string) error { return p.SetACL(n, idshift.ACLAccess, u, g) })
}

func (p *Player) xattr() operation {
	v := p.content()
	if len(v) > 100 {
		v = v[:100]
	}
	n := p.any(unix.S_IFREG, unix.S_IFDIR)
	if p.rng.IntN(20) == 0 {
		n = "."
	}
	return on(n, "setxattr user.test", func(n string) error { return p.SetXattr(n, "user.test", v) })
}

func (p *Player) rename(from string) operation {
	to := p.free()
	if p.rng.IntN(4) == 0 {
		to = p.name()
	}
	if from == "" || to == from || strings.HasPrefix(to+"/", from+"/") {
		return operation{}
	}
	return on(from, fmt.Sprintf("rename to %q", to), func(n string) error { return p.Rename(n, to) })
}

// replace puts something else in the place of something, at times a directory
// that has names of the old one.
func (p *Player) replace(name string) operation {
	kind := p.rng.IntN(4)
	var children []string
	for _, c := range p.paths {
		if filepath.Dir(c) == name && p.rng.IntN(2) == 0 {
			children = append(children, c)
		}
	}
	return on(name, fmt.Sprintf("replace (%d, %d)", kind, len(children)), func(n string) error {
		if err := p.Remove(n); err != nil {
			return err
		}
		switch kind {
		case 0:
			return p.Write(n, "instead")
		case 1:
			return p.Symlink("instead", n)
		}
		if err := p.Mkdir(n); err != nil {
			return err
		}
		for i, c := range children {
			if i%2 == 0 {
				if err := p.Write(c, "again"); err != nil {
					return err
				}
			} else if err := All(func() error { return p.Mkdir(c) }, func() error { return p.Write(c+"/inner", "again") }); err != nil {
				return err
			}
		}
		return p.Write(n+"/fresh", "fresh")
	})
}

func (p *Player) node() operation {
	if !p.Devices || p.rng.IntN(2) == 0 {
		return on(p.free(), "mkfifo", func(n string) error { return p.Mknod(n, unix.S_IFIFO|0o600, 0, 0) })
	}
	return on(p.free(), "mknod", func(n string) error { return p.Mknod(n, unix.S_IFCHR|0o620, 4, 64) })
}
