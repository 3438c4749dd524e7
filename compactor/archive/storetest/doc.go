// Package storetest is what tests of stores, and of what uses stores, share: Conformance, the
// suite that every archive.Store has to pass, and Faulty, a store that fails in all the ways in
// which object stores do.
package storetest
