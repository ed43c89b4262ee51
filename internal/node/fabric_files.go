package node

import (
	"context"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/control"
)

func (f *fabricNode) send(ctx context.Context, r control.SendRequest, tell func(control.JobEvent) error) error {
	return capsule.Errorf(capsule.Unsupported, "TODO")
}
func (f *fabricNode) Send(ctx context.Context, r control.SendRequest, tell func(control.JobEvent) error) error {
	return f.send(ctx, r, tell)
}
func (f *fabricNode) Receive(ctx context.Context, r control.ReceiveRequest, tell func(control.JobEvent) error) error {
	return capsule.Errorf(capsule.Unsupported, "TODO")
}
