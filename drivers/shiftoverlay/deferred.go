package shiftoverlay

import (
	"errors"

	"github.com/containers/storage/drivers/overlay"

	"github.com/shiftoverlay/shiftoverlay/internal/failpoint"
)

// deferring adds DeferredRemove to a Driver. The method's result has a type of
// the storage library's own, which cannot be named outside of it but can be
// inferred: F.
type deferring[F ~func() error] struct {
	*Driver
	inner func(d *overlay.Driver, id string) (F, error)
}

// withDeferredRemove infers F from the method of the embedded driver.
func withDeferredRemove[F ~func() error](d *Driver, inner func(*overlay.Driver, string) (F, error)) *deferring[F] {
	return &deferring[F]{Driver: d, inner: inner}
}

// DeferredRemove implements graphdriver.Driver.
func (d *deferring[F]) DeferredRemove(id string) (F, error) {
	forget, err := d.stageRemoval(id)
	if err != nil {
		return forget, err
	}
	failpoint.Hit("deferred-staged")
	cleanup, err := d.inner(d.Driver.Driver, id)
	failpoint.Hit("deferred-inner")
	return func() error {
		if cleanup == nil {
			return forget()
		}
		return errors.Join(cleanup(), forget())
	}, err
}
