// Package capsule is the vocabulary of SPACE: capsules and their IDs, names,
// facts and policies, and the kinds of error that every layer speaks. It does
// no I/O and imports nothing of the project.
//
//   - [ID], [Kind], [Info]: what a capsule is.
//   - [Stat], [Usage]: exact space accounting for one capsule and for a store.
//   - [Policy]: what a capsule asks for; parsed strictly from YAML by [ParsePolicy].
//   - [Error], [ErrorKind]: every error that crosses a package boundary has a
//     kind; a view maps kinds to its protocol's codes in one table.
//
// Names are UTF-8 paths of slash-separated components (see [CheckName]); the
// set of names is a file tree, so "a" and "a/b" cannot both be capsules.
package capsule
