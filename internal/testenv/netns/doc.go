// Package netns gives tests hosts of their own: network namespaces, joined by
// cables (veth pairs) that can be cut, unplugged and mended.
//
//	a, b := netns.New(t), netns.New(t)
//	cable := netns.Connect(t, a, b, "10.1.0.1/24", "10.1.0.2/24")
//	l, err := b.Listen("tcp", "10.1.0.2:0")
//	c, err := a.Dial("tcp", l.Addr().String())
//	cable.Cut(t)
//
// The namespaces have no names: they are there as long as somebody holds them,
// this process or one that was started in them. So nothing is left over, even
// when a test is killed, and nothing here can change the machine's own network.
//
// A namespace belongs to a thread, and goroutines change threads. [NS.Do] takes
// care of that for what a function makes itself. What dials and listens from
// goroutines of its own runs as a process: [NS.Start].
package netns
