// Package transfer moves files and directory trees between a file system and
// capsules, through any [control.Capsules].
//
//   - [PutFile] and [PutDir] store. A directory becomes one capsule for each
//     regular file, named by its path; many are put at once, so that the store
//     commits them in groups, and results come in walk order all the same.
//   - [GetFile], [GetTo] and [GetDir] fetch. A file appears under its name only
//     when it is whole. Names can't lead out of the target directory
//     ([os.Root]), whatever the store says.
//   - [ImportFile] and [ExportFile] do the same for volumes, whose holes stay
//     holes: they are neither read nor written.
//
// Memory and open files are bounded by constants, not by the size of a tree.
// Nothing half-done stays when a context ends: a put either counts or doesn't,
// and temporary files are removed.
package transfer
