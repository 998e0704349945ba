package shiftoverlay

import (
	"encoding/json"
	"errors"
	"os"
	"syscall"
	"time"

	"github.com/containers/storage/pkg/reexec"
	"github.com/sirupsen/logrus"
)

// trimName is the name of the process that trims the cache where those who start
// containers end too early for that.
const trimName = "shiftoverlay-trim"

func init() { reexec.Register(trimName, trimMain) }

// trimJob is what the process is told.
type trimJob struct {
	Home, RunHome, BootID string
	// Others are where other stores that are read have their layers.
	Others  []string
	MaxSize int64
	MaxAge  time.Duration
}

// trimMain is the process. Its standard input has the job. Nobody reads what it says.
func trimMain() {
	var j trimJob
	err := json.NewDecoder(os.Stdin).Decode(&j)
	if err == nil {
		err = j.do()
	}
	if err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// do trims the cache of a store. It does without the embedded driver, which mounts.
func (j trimJob) do() error {
	s := &site{home: j.Home, runHome: j.RunHome, elsewhere: func(id string) bool { return layerIn(j.Others, id) }}
	for _, dir := range []string{j.RunHome, j.Home, j.Home + cacheSuffix} {
		if _, err := os.Stat(dir); err != nil {
			return err // the store has been removed
		}
	}
	if err := s.openCache(j.BootID, j.MaxSize, j.MaxAge); err != nil {
		return err
	}
	return s.trimOnce()
}

// trimSoon applies the limits of the cache if it is time to, and does not wait for
// that: in this process, or in one of its own if others have begun and not come to
// their end.
func (d *Driver) trimSoon() {
	if !d.toTrim() {
		return
	}
	if d.trimOverdue() {
		err := d.startTrim()
		if err == nil {
			return
		}
		logrus.Debugf("shiftoverlay: start a process to trim the cache: %v", err)
	}
	go d.trimNow()
}

// startTrim starts a process that trims the cache and outlives this one.
func (d *Driver) startTrim() error {
	cmd, err := otherProcess(trimName)
	if err != nil {
		return err
	}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // nobody ends it with the caller
	job, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return errors.Join(err, job.Close())
	}
	err = json.NewEncoder(job).Encode(trimJob{
		Home: d.home, RunHome: d.runHome, BootID: d.bootID, Others: d.otherHomes, MaxSize: d.trim.MaxSize, MaxAge: d.trim.MaxAge,
	})
	err = errors.Join(err, job.Close())
	go func() {
		if err := cmd.Wait(); err != nil {
			logrus.Debugf("shiftoverlay: the process that trims the cache: %v", err)
		}
	}()
	return err
}
