// Package cli is Tidemark's command line, and the kubectl plug-in kubectl-tidemark: the same
// commands under another name.
//
// Commands read history through a replay.Source, so they need the daemon's API and no
// cluster; what changes a cluster (restore, undelete) uses the caller's own kubeconfig.
// Answers go to the standard output, and everything about them (the moment used, gaps,
// questions) to the standard error. Commands return errors; main maps them to exit codes.
package cli
