package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containers/storage"
	"github.com/containers/storage/pkg/idmap"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/referee"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// truth is what an image must look like under a mapping.
type truth struct {
	tree   *referee.Tree
	source string // "kernel" or "arithmetic"
	reason string // why not the kernel
}

const (
	truthKernel     = "kernel"
	truthArithmetic = "arithmetic"
)

// groundTruth reads an image under a mapping from the kernel's own idmapped
// mounts of its layers, whatever the driver does and whatever the environment
// forbids it. Where the kernel cannot, it shifts the unmapped mount by
// arithmetic.
func groundTruth(ctx context.Context, store storage.Store, image *storage.Image, mapping idshift.Mapping, options referee.Options) (*truth, error) {
	tree, err := kernelTruth(ctx, store, image, mapping, options)
	if err == nil {
		return &truth{tree: tree, source: truthKernel}, nil
	}
	var cannot *kernelCannotError
	if !errors.As(err, &cannot) {
		return nil, err
	}
	tree, err = arithmeticTruth(ctx, store, image, mapping, options)
	if err != nil {
		return nil, err
	}
	return &truth{tree: tree, source: truthArithmetic, reason: cannot.Error()}, nil
}

// kernelCannotError says that the kernel or the file system has no idmapped
// mounts that would do.
type kernelCannotError struct{ err error }

func (e *kernelCannotError) Error() string { return e.err.Error() }
func (e *kernelCannotError) Unwrap() error { return e.err }

func arithmeticTruth(ctx context.Context, store storage.Store, image *storage.Image, mapping idshift.Mapping, options referee.Options) (_ *referee.Tree, err error) {
	plain, err := mountImage(store, image, "", containerRequest{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, plain.remove()) }()
	tree, err := referee.Scan(ctx, plain.path, options)
	if err != nil {
		return nil, err
	}
	shift, err := idshift.NewShift(mapping, idshift.Overflow)
	if err != nil {
		return nil, err
	}
	return tree.Shift(shift)
}

// kernelTruth mounts the layers of an image idmapped, one by one, an overlay
// of them, and reads that.
func kernelTruth(ctx context.Context, store storage.Store, image *storage.Image, mapping idshift.Mapping, options referee.Options) (_ *referee.Tree, err error) {
	layers, err := layerFolders(store, image)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "pt-")
	if err != nil {
		return nil, fmt.Errorf("mount layers: %w", err)
	}
	defer func() { err = errors.Join(err, unmountAll(dir)) }()
	// The kernel's word through the storage library's code, not through ours.
	pid, stop, err := idmap.CreateUsernsProcess(storeMaps(mapping.UIDs), storeMaps(mapping.GIDs))
	if err != nil {
		return nil, &kernelCannotError{fmt.Errorf("make user namespace: %w", err)}
	}
	defer stop()
	lowers := make([]string, 0, len(layers)+1)
	for i, layer := range layers {
		target := filepath.Join(dir, strconv.Itoa(i))
		if err := idmap.CreateIDMappedMount(layer, target, pid); err != nil {
			return nil, &kernelCannotError{fmt.Errorf("mount layer %s idmapped: %w", layer, err)}
		}
		lowers = append(lowers, target)
	}
	bottom, merged := filepath.Join(dir, "e"), filepath.Join(dir, "m")
	for _, name := range []string{bottom, merged} {
		if err := os.Mkdir(name, 0o755); err != nil {
			return nil, fmt.Errorf("mount layers: %w", err)
		}
	}
	lowers = append(lowers, bottom) // overlay wants two lowers at least
	if err := mountOverlay(lowers, merged); err != nil {
		return nil, &kernelCannotError{err}
	}
	return referee.Scan(ctx, merged, options)
}

// layerFolders lists the folders of an image's layers, the uppermost first.
func layerFolders(store storage.Store, image *storage.Image) ([]string, error) {
	driver, err := store.GraphDriver()
	if err != nil {
		return nil, fmt.Errorf("open driver: %w", err)
	}
	metadata, err := driver.Metadata(image.TopLayer)
	if err != nil {
		return nil, fmt.Errorf("find folder of layer %s: %w", image.TopLayer, err)
	}
	folders := []string{metadata["UpperDir"]}
	if lowers := metadata["LowerDir"]; lowers != "" {
		folders = append(folders, strings.Split(lowers, ":")...)
	}
	return folders, nil
}

// mountOverlay mounts a read-only overlay. Its lowers are added one by one
// where the kernel can (6.7), since a list of them is limited to one page.
func mountOverlay(lowers []string, target string) error {
	err := mountOverlayByFd(lowers, target)
	if err == nil || !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	options := "lowerdir=" + strings.Join(lowers, ":") + ",metacopy=on"
	if err := unix.Mount("overlay", target, "overlay", unix.MS_RDONLY, options); err != nil {
		return fmt.Errorf("mount overlay of %d layers: %w", len(lowers)-1, err)
	}
	return nil
}

func mountOverlayByFd(lowers []string, target string) error {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fd)
	for _, lower := range lowers {
		if err := unix.FsconfigSetString(fd, "lowerdir+", lower); err != nil {
			return fmt.Errorf("add lower %s: %w", lower, err)
		}
	}
	if err := unix.FsconfigSetString(fd, "metacopy", "on"); err != nil {
		return fmt.Errorf("set metacopy: %w", err)
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return fmt.Errorf("create overlay of %d layers: %w", len(lowers)-1, err)
	}
	mount, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return os.NewSyscallError("fsmount", err)
	}
	defer unix.Close(mount)
	if err := unix.MoveMount(mount, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "move_mount", Path: target, Err: err}
	}
	return nil
}

// unmountAll removes a folder of mount points. It never deletes what is below
// one that is still mounted.
func unmountAll(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("unmount layers: %w", err)
	}
	// The overlay, "m", goes before the layers that it holds.
	for _, entry := range slices.Backward(entries) {
		name := filepath.Join(dir, entry.Name())
		if err := unix.Unmount(name, unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return &os.PathError{Op: "unmount", Path: name, Err: err}
		}
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("unmount layers: %w", err)
		}
	}
	if err := os.Remove(dir); err != nil {
		return fmt.Errorf("unmount layers: %w", err)
	}
	return nil
}
