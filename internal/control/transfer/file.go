package transfer

import (
	"io"
	"os"
	"time"
)

// WriteFile makes the file at path of what write writes. The file appears, or
// replaces the one there, when all of it is written. What exists and is no
// regular file (a device, a pipe) is written to as it is.
func WriteFile(path string, progress *Progress, write func(io.Writer) error) error {
	t, err := openTarget(path)
	if err != nil {
		return err
	}
	if t.special != nil {
		if err := write(&fileWriter{countingWriter{t.special, progress}}); err != nil {
			t.special.Close()
			return err
		}
		return FileError(t.special.Close(), "output")
	}
	defer t.dir.Close()
	return writeInto(t.dir, t.base, t.old, func(f *os.File) (time.Time, error) {
		err := write(&fileWriter{countingWriter{f, progress}})
		return time.Now(), err
	})
}
