// Package api is the daemon's HTTP API: the server, and a client that is a replay.Source, so
// that what reads history cannot tell a daemon's journal from one in its own process.
//
// All paths carry the version: GET /v1/status, /v1/catalog, /v1/resolve, /v1/fold,
// /v1/changes and POST /v1/marks; /healthz, /readyz and /metrics are for machines.
//
// Objects travel byte for byte. An answer of /v1/fold and /v1/changes is a stream of records:
// one line of JSON (a Record) with "size":N and perhaps "beforeSize":M, then exactly M bytes
// of the version before, N bytes of the object, and a newline. The stream ends with the line
// {"end":true}, or with {"error":"..."}: an answer without either was cut off and is an
// error, never a short answer.
//
// The package decides nothing about history and keeps nothing; the daemon owns the journal.
package api
