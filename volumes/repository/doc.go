// Package repository keeps the content of volumes: files with all that belongs to them, or the bytes of a block device, in
// a Kopia repository beside an archive, in the same location.
//
// It is the only package that knows Kopia. Repositories are ordinary ones: whoever has the password can open the
// directory "volumes/CLUSTER/kopia/" of the location with the kopia command line. Kopia does not keep extended attributes, hard
// links, holes and special files, so a file of that name in the root of a backup does (attributes.go).
//
// Nothing in a volume is trusted: symbolic links are kept as they are and never followed, neither when a
// volume is read nor when one is written.
package repository
