// Package relay carries byte streams over plain HTTPS exchanges, for networks
// in which only outbound HTTPS works and each exchange is one request and one
// response: no upgrade, no streaming body, no push.
//
//   - [Client] makes connections ([Client.Dial]) and moves their bytes in
//     batches of operations, one batch an exchange, for all of them together.
//   - [Server] runs the operations and hands the other ends of the connections
//     to whoever accepts them: it is a net.Listener.
//   - [Exchanger] is the way between them: [HTTP] in real life, a function in
//     tests. [Server.ServeHTTP] is its other end.
//   - [Op] and [Reply] are what travels, in batches; wire.go has the bytes.
//
// A connection is a [net.Conn] with CloseWrite, reliable and in order. It
// brings no secrecy and no identity of its own beyond HTTPS's: whoever uses it
// runs TLS over it, end to end, so that the relay sees ciphertext only.
//
// # Operations
//
// An operation writes bytes to the far end and drains bytes from it, under the
// session's lock. A client has several under way at once, numbered by a u64
// seq; the server runs them in the order of their numbers, although requests
// overtake each other, and echoes the number. Both sides of a connection are
// bounded: a client sends no more than the server has said it has room for
// (Reply.Window), and asks for no more than it has room for (Op.Drain).
//
// The last operation under way may wait at the server for bytes to come (long
// poll). It stops waiting when bytes come, when its time is up, or when the
// session's next operation arrives. So an idle connection costs one waiting
// operation, and all idle connections of a client share one exchange.
//
// No session waits for another: the answer to a batch leaves as soon as one
// of its operations is done and none can go on at once. Operations that still
// wait, for bytes or for an earlier number, are answered Pending; the client
// asks for them again ([Resume]).
//
// # Strangers
//
// A client's end is a stranger's until the server's user says that it knows who it is
// ([Conn.Know]). Strangers have a number of places of their own; where one more comes, the
// oldest one of the place that most of them come from makes way. So they keep nobody else
// out, however many they are.
//
// # Failures
//
// An exchange that fails may have been run or not. The server keeps the
// replies of a session until the client acknowledges them, so an operation can
// be sent again without running twice. A number that stays away holds its
// session for at most [HoldTime], then the session ends with an error, and no
// other session notices. A write that fails still uses up its number.
//
// # Old peers
//
// Pipelining is negotiated: a server that numbers operations sets bit 0
// ([CapPipelineSeq]) in its reply to Connect. Without it, and for good after
// the first reply that lacks the number it should echo, the client has one
// operation under way, without a number, and never sends one twice. Unknown
// fields are skipped in both directions.
package relay
