package podmandb

import (
	"errors"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
)

// Names of podman's buckets and keys (libpod/boltdb_state_internal.go).
var (
	runtimeConfig = []byte("runtime-config")
	graphDriver   = []byte("graph-driver-name")
	graphRoot     = []byte("graph-root")
	runRoot       = []byte("run-root")
	allContainers = []byte("all-ctrs")
)

// boltDB is a database of podman 4 and older, which podman 5 goes on to use.
type boltDB string

func (f boltDB) Path() string { return string(f) }

func (f boltDB) open(readOnly bool) (*bbolt.DB, error) {
	db, err := bbolt.Open(string(f), 0o600, &bbolt.Options{Timeout: 10 * time.Second, ReadOnly: readOnly})
	if err != nil {
		return nil, fmt.Errorf("open podman's database %s: %w", f, err)
	}
	return db, nil
}

// Facts implements DB.
func (f boltDB) Facts() (facts Facts, err error) {
	db, err := f.open(true)
	if err != nil {
		return facts, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	err = db.View(func(tx *bbolt.Tx) error {
		if b := tx.Bucket(runtimeConfig); b != nil {
			facts.Driver, facts.GraphRoot, facts.RunRoot = string(b.Get(graphDriver)), string(b.Get(graphRoot)), string(b.Get(runRoot))
		}
		if b := tx.Bucket(allContainers); b != nil {
			facts.Containers = b.Stats().KeyN
		}
		return nil
	})
	return facts, err
}

// Change implements DB.
func (f boltDB) Change(driver string, rewrite func(string) string) (err error) {
	db, err := f.open(false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	err = db.Update(func(tx *bbolt.Tx) error {
		if err := tx.ForEach(func(_ []byte, b *bbolt.Bucket) error { return changeBucket(b, rewrite) }); err != nil {
			return err
		}
		b := tx.Bucket(runtimeConfig)
		if b == nil || b.Get(graphDriver) == nil {
			return nil
		}
		return b.Put(graphDriver, []byte(driver))
	})
	if err != nil {
		return fmt.Errorf("change podman's database %s: %w", f, err)
	}
	return nil
}

// changeBucket changes the values in a bucket and those below it. A bucket must
// not be changed while it is gone through.
func changeBucket(b *bbolt.Bucket, rewrite func(string) string) error {
	changed := map[string]string{}
	err := b.ForEach(func(k, v []byte) error {
		if v == nil {
			if inner := b.Bucket(k); inner != nil {
				return changeBucket(inner, rewrite)
			}
			return nil
		}
		if now := rewrite(string(v)); now != string(v) {
			changed[string(k)] = now
		}
		return nil
	})
	if err != nil {
		return err
	}
	for k, v := range changed {
		if err := b.Put([]byte(k), []byte(v)); err != nil {
			return err
		}
	}
	return nil
}
