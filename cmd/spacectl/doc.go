// Command spacectl is SPACE's one binary: the command line, and the node that
// serves it.
//
// There is one file per command; each parses its arguments, calls the control
// API (package internal/control, however it is reached: package internal/node)
// and prints. What commands share is in root.go (flags, settings, the way to
// the store), output.go (tables, JSON), progress.go, exit.go (exit codes) and
// main.go (signals, errors).
package main
