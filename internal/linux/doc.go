// Package linux wraps the system calls that the rest of the project uses and
// that package os does not offer, or offers only by path. Every wrapper
// retries on EINTR and reports failure as *os.PathError, so that the errno is
// reachable through errors.Is. There is nothing else in here.
package linux
