// Package lint holds the rules of the house that no ready-made linter knows,
// as tests over the source tree:
//
//   - imports go downward only, by the table [floors];
//   - every package has a doc.go that says what it is;
//   - the metadata engine, and the operating system's files, are reached
//     through their seams;
//   - the vocabulary and the pipeline do no I/O;
//   - links between documents lead somewhere.
//
// Files are read with every build tag, so what holds on this machine holds on
// all. Test files are exempt: a test may look at whatever it needs.
package lint
