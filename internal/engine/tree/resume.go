package tree

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// What a Build that died leaves can be told from what is complete by times alone:
// that of the image's file or folder is the last thing that each gets, and until
// then it has that of its own creation. File systems that keep times less exactly
// than that of the layers make everything look incomplete: it is then made anew.

// linkName is the name of an inode in the folder of links. It says which inode of
// the layers it is, so that a Build that goes on finds it.
func linkName(key idshift.LinkKey) string {
	return fmt.Sprintf("%d-%d-%d", key.Layer, key.Dev, key.Ino)
}

// complete tells whether what is in the tree has all that e has, and its owner.
func (w *writer) complete(e *idshift.Entry, st *unix.Stat_t) (bool, error) {
	uid, gid, err := w.shift.Owner(e.Stat.Uid, e.Stat.Gid)
	if err != nil {
		return false, err
	}
	return st.Mode == e.Stat.Mode && st.Uid == uid && st.Gid == gid && st.Mtim == e.Stat.Mtim &&
		(e.IsDir() || st.Size == e.Stat.Size), nil
}

// resume looks at a directory that a Build that died may have filled, and tells
// whether it did so to the end. Otherwise all is taken away that is not complete;
// the names that may stay are returned. Nothing is below the folders of such a
// directory.
func (d *dir) resume() (done bool, keep map[string]bool, err error) {
	var st unix.Stat_t
	if err := linux.Fstat(d.fd, d.src.Self.Name, &st); err != nil {
		return false, nil, err
	}
	if done, err := d.complete(&d.src.Self, &st); done || err != nil {
		return done, nil, err
	}
	var names []string
	var b linux.DirBuffer
	if err := b.Read(d.fd, d.src.Self.Name, func(name string, _ uint8) error {
		names = append(names, name)
		return nil
	}); err != nil || len(names) == 0 {
		return false, nil, err
	}
	entries := make(map[string]*idshift.Entry, len(d.src.Entries))
	for i := range d.src.Entries {
		entries[d.src.Entries[i].Name] = &d.src.Entries[i]
	}
	keep = make(map[string]bool, len(names))
	for _, name := range names {
		ok, err := d.mayStay(name, entries[name])
		if err != nil {
			return false, nil, err
		}
		if ok {
			keep[name] = true
		} else if err := d.discard(name); err != nil {
			return false, nil, err
		}
	}
	return false, keep, nil
}

// mayStay tells whether a name is that of a regular file that is complete. What has
// other names is linked anew, and the rest costs little.
func (d *dir) mayStay(name string, e *idshift.Entry) (bool, error) {
	if e == nil || e.Stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return false, nil
	}
	if _, shared := e.Link(); shared {
		return false, nil
	}
	var st unix.Stat_t
	if err := linux.Lstatat(d.fd, name, &st); err != nil {
		return false, err
	}
	return d.complete(e, &st)
}

// discard removes a name, and a folder, which is empty.
func (d *dir) discard(name string) error {
	err := unix.Unlinkat(d.fd, name, 0)
	if errors.Is(err, unix.EISDIR) {
		err = unix.Unlinkat(d.fd, name, unix.AT_REMOVEDIR)
	}
	if err != nil {
		return &os.PathError{Op: "unlinkat", Path: name, Err: err}
	}
	return nil
}

// made tells whether an inode with several names is in the folder of links, from a
// Build that died. One that is not complete is taken away.
func (d *dir) made(e *idshift.Entry, l *link) (bool, error) {
	if err := d.workAs(0, 0); err != nil { // nobody else may enter there
		return false, err
	}
	var st unix.Stat_t
	err := linux.Lstatat(d.linksFD, l.name, &st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	ok, err := d.complete(e, &st)
	if ok || err != nil {
		return ok, err
	}
	if err := unix.Unlinkat(d.linksFD, l.name, 0); err != nil {
		return false, &os.PathError{Op: "unlinkat", Path: l.name, Err: err}
	}
	return false, nil
}
