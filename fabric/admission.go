package fabric

func (n *Node) admitSession(r *route) (func(), *RefusedError)              { return func() {}, nil }
func (n *Node) admitTunnel(t *Tunnel, peer string) (func(), *RefusedError) { return func() {}, nil }
func (n *Node) admitStream(t *Tunnel) (func(), *RefusedError)              { return func() {}, nil }
func (n *Node) admitPass(r *route) (func(), *RefusedError)                 { return func() {}, nil }
