// Package locals3 runs a real S3 server on this machine, versitygw over a directory, as a
// process of the calling user on a free loopback port. Tests, the demo and the benchmarks
// share it.
//
// A Server lives between Start and Stop:
//
//	s, err := locals3.Start(ctx, locals3.Options{})
//	if err != nil { ... }
//	defer s.Stop()
//	err = s.MakeBucket(ctx, "backups", false)
//	url := s.URL("backups", "prod") // with s.CredentialsFile(), what an archive needs
//
// The server is built from the Go module in the folder server, once per machine (see Binary).
// It has conditional writes, versions, object lock and legal holds, and it keeps its data over
// Kill and Restart.
//
// On Linux the server ends with the process that started it, even when that is killed.
// Elsewhere a killed test leaves it running. It needs no root and no container runtime, but
// a file system with extended attributes for its directory.
package locals3
