package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Where the host shows this program and the list of files in a container.
const (
	toolDir  = "/bench"
	toolName = "benchplot"
	listName = "files"
)

// The container's first process, and what the others are told to do.
const (
	taskFind    = "find"    // find /
	taskRead    = "read"    // open and read the files of the list
	taskTar     = "tar"     // tar of a tree, read by this program
	taskCompile = "compile" // a small Go program, with an empty build cache
	taskExecs   = "execs"   // /bin/true, 300 times
	taskData    = "data"    // read the file that containers share
	taskNothing = "nothing"
)

const execs = 300

// errNotHere is why an image cannot do a task.
var errNotHere = errors.New("not in this image")

// inside does what it reads, a task a line, and answers each with its time in
// seconds, or with "error" and the reason. When the first line is empty it waits
// to be killed, as the container's first process.
func inside(in io.Reader, out io.Writer) error {
	s := bufio.NewScanner(in)
	read := false
	for s.Scan() {
		read = true
		took, err := task(s.Text())
		if err != nil {
			fmt.Fprintf(out, "error %v\n", err)
			continue
		}
		fmt.Fprintf(out, "%.6f\n", took.Seconds())
	}
	if read || s.Err() != nil {
		return s.Err()
	}
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	<-c
	return nil
}

// task does one task and returns the time that counts.
func task(name string) (time.Duration, error) {
	switch name {
	case taskFind:
		return timed(func() error { return quiet(exec.Command("find", "/", "-xdev")) })
	case taskRead:
		files, err := os.ReadFile(filepath.Join(toolDir, listName))
		if err != nil {
			return 0, err
		}
		return timed(func() error { return readFiles(strings.Split(strings.TrimSpace(string(files)), "\n")) })
	case taskTar:
		tree := "/usr/local/go"
		if _, err := os.Stat(tree); err != nil {
			tree = "/usr"
		}
		return timed(func() error { return tarTree(tree) })
	case taskCompile:
		return compile()
	case taskExecs:
		return timed(func() error {
			for range execs {
				if err := exec.Command("/bin/true").Run(); err != nil {
					return err
				}
			}
			return nil
		})
	case taskData:
		return timed(func() error { return readFiles([]string{"/" + dataName}) })
	case taskNothing:
		return 0, nil
	}
	return 0, fmt.Errorf("unknown task %q", name)
}

func timed(f func() error) (time.Duration, error) {
	start := time.Now()
	err := f()
	return time.Since(start), err
}

// quiet runs a command and shows what it says only if it fails.
func quiet(c *exec.Cmd) error {
	var messages strings.Builder
	c.Stderr = &messages
	if err := c.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", c.Path, err, strings.ReplaceAll(strings.TrimSpace(messages.String()), "\n", "; "))
	}
	return nil
}

// readFiles opens files and reads them.
func readFiles(files []string) error {
	buf := make([]byte, 128<<10)
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		for err == nil {
			_, err = f.Read(buf)
		}
		if err := f.Close(); err != nil {
			return err
		}
		if !errors.Is(err, io.EOF) {
			return err
		}
	}
	return nil
}

// tarTree packs a tree. GNU tar does not read files when it writes to
// /dev/null, so this program is the reader.
func tarTree(dir string) error {
	c := exec.Command("tar", "-C", dir, "-cf", "-", ".")
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, out)
	return errors.Join(err, c.Wait())
}

// compile builds a small Go program and the Go runtime below it, with the
// image's own Go.
func compile() (time.Duration, error) {
	goTool := "/usr/local/go/bin/go"
	if _, err := os.Stat(goTool); err != nil {
		return 0, errNotHere
	}
	dir, err := os.MkdirTemp("", "compile")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	source := "package main\n\nfunc main() { println(\"compiled\") }\n"
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o644); err != nil {
		return 0, err
	}
	c := exec.Command(goTool, "build", "-o", "program", "main.go")
	c.Dir = dir
	c.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + dir, "GOCACHE=" + dir + "/cache", "GOFLAGS=-mod=mod", "GOPROXY=off", "GOTOOLCHAIN=local", "CGO_ENABLED=0", "GO111MODULE=off"}
	return timed(func() error { return quiet(c) })
}
