// Package bench holds what needs real servers and time: model tests that set what Tidemark
// recorded against what a real API server says, tests that kill the real daemon, and the
// benchmarks. Nothing imports it.
package bench
