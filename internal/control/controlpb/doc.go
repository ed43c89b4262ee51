// Package controlpb is the wire form of the control API: messages and stubs
// that protoc generates from control.proto and fabric.proto. Nothing but internal/control
// imports it.
package controlpb

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative control.proto fabric.proto
