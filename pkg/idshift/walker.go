package idshift

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/linux"
)

// source is one layer's part of a merged directory.
type source struct {
	layer int
	fd    int
}

type refcount struct{ n atomic.Int32 }

// pending is a merged directory that was seen and not read yet.
type pending struct {
	dir    *Dir
	lowers []int // layers that may have a part of it, besides that of dir.Self
}

// walker is the state of one Walk. The stack is last in, first out, so that
// the number of directories that are open at a time stays near the depth.
type walker struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	chain  []string
	opts   WalkOptions
	sink   Sink

	mu    sync.Mutex
	more  *sync.Cond
	stack []pending
	busy  int // workers that may still push
}

func newWalker(ctx context.Context, chain []string, o WalkOptions, sink Sink) *walker {
	w := &walker{chain: chain, opts: o, sink: sink}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.more = sync.NewCond(&w.mu)
	return w
}

func (w *walker) run() error {
	defer w.cancel(nil)
	stop := context.AfterFunc(w.ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.more.Broadcast()
	})
	defer stop()
	root := &Dir{}
	if err := w.openRoot(root); err != nil {
		root.close()
		return err
	}
	root.refs.n.Store(1)
	w.stack = []pending{{dir: root}}
	err := linux.OnThreads(w.opts.Workers, func() error {
		(&worker{walker: w}).loop()
		return nil
	})
	for _, p := range w.stack {
		w.unref(p.dir.parent)
	}
	if root.refs.n.Load() > 0 {
		root.close() // never taken from the stack
	}
	if err != nil {
		return err
	}
	if cause := context.Cause(w.ctx); cause != nil {
		return cause
	}
	return nil
}

// openRoot opens the roots of all layers and reads what the uppermost says of
// the root itself.
func (w *walker) openRoot(root *Dir) error {
	var xb linux.XattrBuffer
	for i, p := range w.chain {
		fd, err := linux.Openat(unix.AT_FDCWD, p, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return fmt.Errorf("open layer: %w", err)
		}
		root.sources = append(root.sources, source{layer: i, fd: fd})
		var e Entry
		if err := linux.Fstat(fd, p, &e.Stat); err != nil {
			return err
		}
		r := xattrReader{
			list: func(y func(string) error) error { return xb.Flist(fd, p, y) },
			get:  func(n string) ([]byte, error) { return xb.Fget(fd, p, n) },
		}
		if _, err := w.readXattrs(&e, r); err != nil {
			return w.at(i, ".", err)
		}
		if i == 0 {
			root.Self = e
		}
		// The kernel takes no notice of "y" on the root of a layer: all roots
		// are merged (ovl_get_root in fs/overlayfs/super.c).
	}
	return nil
}

// next returns a directory to work on, or false when there is no more.
func (w *walker) next() (pending, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		if w.ctx.Err() != nil {
			return pending{}, false
		}
		if n := len(w.stack); n > 0 {
			p := w.stack[n-1]
			w.stack[n-1] = pending{}
			w.stack = w.stack[:n-1]
			w.busy++
			return p, true
		}
		if w.busy == 0 {
			w.more.Broadcast()
			return pending{}, false
		}
		w.more.Wait()
	}
}

// done gives back what next gave, with the directories found in it.
func (w *walker) done(found []pending, err error) {
	if err != nil {
		w.cancel(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.Reverse(found)
	w.stack = append(w.stack, found...)
	w.busy--
	if len(found) > 1 || w.busy == 0 {
		w.more.Broadcast()
	}
}

// unref drops one reference to an open directory and closes it with the last.
func (w *walker) unref(d *Dir) {
	if d != nil && d.refs.n.Add(-1) == 0 {
		if d.given {
			w.sink.Release(d)
		}
		d.close()
	}
}

func (d *Dir) close() {
	for _, s := range d.sources {
		_ = linux.Close(s.fd)
	}
	d.sources = nil
}

// at says where in which layer an error happened, unless it already does.
func (w *walker) at(layer int, p string, err error) error {
	if le, ok := errors.AsType[*LayerError](err); ok {
		le.Layer, le.Path = w.chain[layer], p
		return le
	}
	var pe interface{ Unwrap() error }
	if errors.As(err, &pe) {
		err = pe.Unwrap()
	}
	return fmt.Errorf("read %s: %w", path.Join(w.chain[layer], p), err)
}

// worker is one thread of a walk.
type worker struct {
	*walker
	xb linux.XattrBuffer
	db linux.DirBuffer
}

func (t *worker) loop() {
	for {
		p, ok := t.next()
		if !ok {
			return
		}
		found, err := t.directory(p)
		t.done(found, err)
	}
}

// directory reads one merged directory, gives it to the sink and returns the
// directories in it.
func (t *worker) directory(p pending) ([]pending, error) {
	d := p.dir
	defer t.unref(d.parent) // as the parent of this one
	if d.parent != nil {
		d.refs.n.Store(1)
		if err := t.open(p); err != nil {
			d.close()
			return nil, err
		}
	}
	defer t.unref(d)
	lowers, err := t.read(d)
	if err != nil {
		return nil, err
	}
	d.given = true
	if err := t.sink.Directory(t.ctx, d); err != nil {
		return nil, err
	}
	if t.opts.Done != nil {
		t.opts.Done(len(d.Entries))
	}
	var found []pending
	for i := range d.Entries {
		if e := &d.Entries[i]; e.IsDir() {
			d.refs.n.Add(1)
			found = append(found, pending{dir: &Dir{Self: *e, parent: d}, lowers: lowers[e.Name]})
		}
	}
	d.Entries = nil
	return found, nil
}

// open opens the parts of a merged directory from the top down to the first
// opaque one.
func (t *worker) open(p pending) error {
	d := p.dir
	for _, s := range d.parent.sources {
		own := s.layer == d.Self.Layer
		if !own && !slices.Contains(p.lowers, s.layer) {
			continue
		}
		fd, err := linux.OpenDir(s.fd, d.Self.Name)
		if err != nil {
			return t.at(s.layer, d.Path(), err)
		}
		opaque := d.Self.opaque
		if !own {
			if opaque, err = t.lowerMarks(fd); err != nil {
				_ = linux.Close(fd)
				return t.at(s.layer, d.Path(), err)
			}
		}
		d.sources = append(d.sources, source{layer: s.layer, fd: fd})
		if opaque {
			break
		}
	}
	return nil
}

// lowerMarks reads overlay's own attributes of a directory that is not the
// uppermost of its merged directory.
func (t *worker) lowerMarks(fd int) (opaque bool, err error) {
	var e Entry
	e.Stat.Mode = unix.S_IFDIR
	_, err = t.readXattrs(&e, xattrReader{
		list: func(y func(string) error) error { return t.xb.Flist(fd, "", y) },
		get:  func(n string) ([]byte, error) { return t.xb.Fget(fd, "", n) },
		own:  true,
	})
	return e.opaque, err
}

// read fills d.Entries and returns, for each directory among them, the layers
// below its own that may have a part of it.
func (t *worker) read(d *Dir) (map[string][]int, error) {
	type seen struct {
		dir    bool // every layer so far had a directory
		lowers []int
	}
	var names map[string]*seen
	merged := len(d.sources) > 1
	if merged {
		names = make(map[string]*seen)
	}
	for _, s := range d.sources {
		var mine []string
		err := t.db.Read(s.fd, "", func(name string, typ uint8) error {
			if !merged {
				mine = append(mine, name)
				return nil
			}
			if typ == unix.DT_UNKNOWN {
				var st unix.Stat_t
				if err := linux.Lstatat(s.fd, name, &st); err != nil {
					return err
				}
				typ = uint8(st.Mode & unix.S_IFMT >> 12)
			}
			isDir := typ == unix.DT_DIR
			n, old := names[name]
			switch {
			case !old:
				names[name] = &seen{dir: isDir}
				mine = append(mine, name)
			case n.dir && isDir:
				n.lowers = append(n.lowers, s.layer)
			default:
				n.dir = false
			}
			return nil
		})
		if err != nil {
			return nil, t.at(s.layer, d.Path(), err)
		}
		if err := t.entries(d, s, mine); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(d.Entries, func(a, b Entry) int { return cmp.Compare(a.Name, b.Name) })
	lowers := make(map[string][]int)
	for name, n := range names {
		if len(n.lowers) > 0 {
			lowers[name] = n.lowers
		}
	}
	return lowers, nil
}

// entries appends to d.Entries those names of one source that are not
// whiteouts.
func (t *worker) entries(d *Dir, s source, names []string) error {
	if len(names) == 0 {
		return nil
	}
	if err := linux.Fchdir(s.fd, ""); err != nil {
		return t.at(s.layer, d.Path(), err)
	}
	d.Entries = slices.Grow(d.Entries, len(names))
	for i, name := range names {
		if i%512 == 0 && t.ctx.Err() != nil {
			return t.ctx.Err()
		}
		d.Entries = append(d.Entries, Entry{Name: name, Layer: s.layer})
		e := &d.Entries[len(d.Entries)-1]
		keep, err := t.entry(e, s)
		if err != nil {
			return t.at(s.layer, path.Join(d.Path(), name), err)
		}
		if !keep {
			d.Entries = d.Entries[:len(d.Entries)-1]
		}
	}
	return nil
}

// entry reads one name of the thread's current directory; false
// says that it is a whiteout.
func (t *worker) entry(e *Entry, s source) (bool, error) {
	if err := linux.Lstatat(s.fd, e.Name, &e.Stat); err != nil {
		return false, err
	}
	typ := e.Stat.Mode & unix.S_IFMT
	if typ == unix.S_IFCHR && e.Stat.Rdev == 0 {
		return false, nil
	}
	whiteout, err := t.readXattrs(e, xattrReader{
		list: func(y func(string) error) error { return t.xb.Llist(e.Name, y) },
		get:  func(n string) ([]byte, error) { return t.xb.Lget(e.Name, n) },
	})
	if err != nil {
		return false, err
	}
	// Wherever it is: the marks of directories are there for readdir(2) alone
	// (ovl_path_is_whiteout in fs/overlayfs/util.c), which may list a name that
	// no lookup finds.
	if whiteout && typ == unix.S_IFREG && e.Stat.Size == 0 {
		return false, nil
	}
	if typ == unix.S_IFLNK {
		e.Target, err = linux.Readlinkat(s.fd, e.Name, e.Stat.Size)
	}
	return true, err
}

// xattrReader reads the attributes of one inode.
type xattrReader struct {
	list func(yield func(name string) error) error
	get  func(name string) ([]byte, error)
	own  bool // overlay's own attributes only
}

// readXattrs fills e.Xattrs and e.opaque, and tells whether the inode carries
// overlay's mark of a whiteout.
func (w *walker) readXattrs(e *Entry, r xattrReader) (whiteout bool, err error) {
	err = r.list(func(name string) error {
		private, ok := strings.CutPrefix(name, string(w.opts.Namespace))
		if ok && !strings.HasPrefix(private, "overlay.") {
			switch private {
			case "whiteout":
				whiteout = true
			case "redirect", "metacopy":
				return &LayerError{Xattr: name}
			case "opaque":
				if v, err := r.get(name); err != nil {
					return err
				} else if e.IsDir() && string(v) == "y" {
					e.opaque = true
				}
			}
			return nil
		}
		if r.own {
			return nil
		}
		v, err := r.get(name)
		if name == Capability && IsVoidCapability(err) {
			return nil
		}
		if err != nil {
			return err
		}
		e.Xattrs = append(e.Xattrs, Xattr{Name: name, Value: v})
		return nil
	})
	return whiteout, err
}

// IsVoidCapability tells whether reading a file capability failed because the
// kernel would not honour it: the value is garbage (EINVAL), or its root user
// does not exist here (EOVERFLOW, on older kernels EOPNOTSUPP); see
// cap_inode_getsecurity in security/commoncap.c.
func IsVoidCapability(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOVERFLOW) || errors.Is(err, unix.EOPNOTSUPP)
}

// openSource opens a file of a layer for reading, following nothing.
func openSource(dirfd int, name, full string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK
	fd, err := linux.Openat(dirfd, name, flags|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		fd, err = linux.Openat(dirfd, name, flags, 0)
	}
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", full, err)
	}
	return fd, nil
}
