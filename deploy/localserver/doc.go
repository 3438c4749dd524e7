// Package localserver builds a server from a Go module of its own, once per machine, and runs it as a
// process of the calling user. It is what deploy/localcluster and deploy/locals3 have in common.
//
// A Build names the module and its programs, and Dir makes them in a directory of the user's cache
// whose name changes with all that decides what is in it: the module's go.mod and go.sum, the linker's
// flags, the platform and the version of Go. Processes that ask at once share one build.
//
// A Process lives between Start and Stop; whoever starts one knows when it is ready:
//
//	dir, err := build.Dir(ctx, os.Stderr)
//	p, err := localserver.Start(filepath.Join(dir, "server"), args, nil, "server.log")
//	err = p.Await(ctx, time.Minute, func(ctx context.Context) error { ... })
//	p.Stop(syscall.SIGTERM, 8*time.Second)
//
// It chooses no ports and begins nothing again: that is the caller's, who learns of a port that was
// taken from ErrPortTaken.
package localserver
