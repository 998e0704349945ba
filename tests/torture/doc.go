// Package torture breaks stores on purpose and looks whether anything is lost:
// with real operations of the storage library, in processes of their own, under
// faults that are real ones. Its tests are behind the build tag torture, since
// they take minutes to hours; hack/torture.sh runs them.
//
// # Areas
//
// An area is one Go test in a file of its own. It runs as root in a sandbox
// (hack/sandbox.sh): mounts are its own, TMPDIR is on a scratch file system. It
// reads
//
//	TORTURE_SECONDS  about how long it may take; 0 or nothing: all that it has
//	TORTURE_SEED     what its random choices begin with; it must log it
//
// and says at its end, through report, one line "NAME: N operations, M faults,
// L losses" in the file that TORTURE_RESULTS names. A loss is anything that the
// documentation promises and that was not so afterwards; the test fails with it.
package torture
