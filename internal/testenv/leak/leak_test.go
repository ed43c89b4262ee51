package leak

import "testing"

func TestAwait(t *testing.T) {
	if err := await(patience); err != nil {
		t.Fatal(err)
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		<-stop
		close(ended)
	}()
	if err := await(0); err == nil {
		t.Error("a goroutine that waits is not seen")
	}
	close(stop)
	<-ended
	if err := await(patience); err != nil {
		t.Error(err)
	}
}
