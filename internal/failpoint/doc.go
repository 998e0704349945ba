// Package failpoint marks the places where a program changes something outside
// of itself: on the disk, in the mount table. With the build tag torture a
// process can be told to die at one of them, as if it had been killed there;
// without it, Hit is empty and the compiler leaves it out.
//
// The process reads
//
//	SHIFT_FAILPOINT       N: it kills itself (SIGKILL) at the N-th place that it comes by, from 1
//	SHIFT_FAILPOINT_RUN   a program that it runs there, in the place of dying
//	SHIFT_FAILPOINT_LOG   a file to which the name of each place is appended that it comes by
//
// Places that several goroutines come by are counted in the order in which they do.
package failpoint
