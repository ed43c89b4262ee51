package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/control/transfer"
	"github.com/spacestore/space/views/nvme/dhchap"
	"github.com/spacestore/space/views/nvme/host"
	"github.com/spacestore/space/views/nvme/wire"
)

func newNVMe(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "nvme",
		Short: "Look at, read, write and measure the disks of NVMe/TCP targets",
		Long: `Talk to an NVMe/TCP target, this project's or any other, without a kernel
driver and without root. ADDRESS is HOST or HOST:PORT (port 4420). Without
--nqn the target's only subsystem is used, and without --nsid its only namespace.

This host's name is --host-nqn, else what /etc/nvme/hostnqn says. Secrets of
DH-HMAC-CHAP authentication come from files or from the environment,
SPACE_NVME_SECRET and SPACE_NVME_CONTROLLER_SECRET.`,
		Args: cobra.NoArgs,
		RunE: needsSubcommand,
	}
	cmd.AddCommand(newNVMeDiscover(a), newNVMeIdentify(a), newNVMeRead(a), newNVMeWrite(a), newNVMeBench(a), newNVMeGenKey(a))
	return cmd
}

// nvmeFlags are the flags that say who the host is and how it connects.
type nvmeFlags struct {
	hostNQN, hostID            string
	secretFile, ctrlSecretFile string
	headerDigest, dataDigest   bool
	timeout                    time.Duration
	nqn                        string
	nsid                       uint32
}

func (f *nvmeFlags) add(cmd *cobra.Command, subsystem bool) {
	s := cmd.Flags()
	s.StringVar(&f.hostNQN, "host-nqn", "", "this host's name to the target (default: from /etc/nvme, else made from its ID)")
	s.StringVar(&f.hostID, "host-id", "", "this host's identifier, a UUID (default: from /etc/nvme, else random)")
	s.StringVar(&f.secretFile, "secret-file", "", "file with this host's secret, DHHC-1:…")
	s.StringVar(&f.ctrlSecretFile, "controller-secret-file", "", "file with the secret by which the target has to prove itself")
	s.BoolVar(&f.headerDigest, "hdr-digest", false, "have headers carry a CRC32C")
	s.BoolVar(&f.dataDigest, "data-digest", false, "have data carry a CRC32C")
	s.DurationVar(&f.timeout, "timeout", host.DefaultTimeout, "how long the target may leave a command without an answer")
	if subsystem {
		s.StringVar(&f.nqn, "nqn", "", "the subsystem's name (default: the target's only one)")
	}
}

func (f *nvmeFlags) addNSID(cmd *cobra.Command) {
	cmd.Flags().Uint32Var(&f.nsid, "nsid", 0, "the namespace (default: the only one)")
}

func (f *nvmeFlags) options() (o host.Options, err error) {
	if o.HostNQN, o.HostID, err = host.Identity("/etc/nvme"); err != nil {
		return o, err
	}
	if f.hostNQN != "" {
		o.HostNQN = f.hostNQN
	}
	if f.hostID != "" {
		if o.HostID, err = host.ParseHostID(f.hostID); err != nil {
			return o, err
		}
	}
	if f.timeout <= 0 {
		return o, capsule.Errorf(capsule.Invalid, "--timeout %v; want something like 30s", f.timeout)
	}
	o.HeaderDigest, o.DataDigest, o.Timeout, o.KeepAlive = f.headerDigest, f.dataDigest, f.timeout, 30*time.Second
	if o.Secret, err = nvmeSecret(f.secretFile, "SPACE_NVME_SECRET"); err != nil {
		return o, err
	}
	o.ControllerSecret, err = nvmeSecret(f.ctrlSecretFile, "SPACE_NVME_CONTROLLER_SECRET")
	return o, err
}

// nvmeSecret reads a secret from a file, or from the environment. It is no flag,
// for those are seen by every user of the machine.
func nvmeSecret(path, env string) (dhchap.Secret, error) {
	text, from := os.Getenv(env), env
	if path != "" {
		b, err := os.ReadFile(path)
		if err != nil {
			return dhchap.Secret{}, transfer.FileError(err, "secret")
		}
		text, from = string(b), path
	}
	if text = strings.TrimSpace(text); text == "" {
		if path != "" {
			return dhchap.Secret{}, capsule.Errorf(capsule.Invalid, "%s is empty; there should be a secret, DHHC-1:…", path)
		}
		return dhchap.Secret{}, nil
	}
	s, err := dhchap.ParseSecret(text)
	return s, capsule.Wrap(capsule.Invalid, err, "%s", from)
}

// From bulk bytes in a command on, its data had better not go through a large
// read buffer.
const bulk, bulkBuffer = 32 << 10, 8 << 10

// with connects to the subsystem that the flags name, calls fn, which uses
// commands of about size bytes, and disconnects.
func (f *nvmeFlags) with(ctx context.Context, address string, size int, fn func(*host.Controller) error) error {
	o, err := f.options()
	if err != nil {
		return err
	}
	if size >= bulk {
		o.ReadBuffer = bulkBuffer
	}
	nqn := f.nqn
	if nqn == "" {
		if nqn, err = host.OnlySubsystem(ctx, address, o); err != nil {
			return err
		}
	}
	c, err := host.Connect(ctx, host.WithPort(address, host.Port), nqn, o)
	if err != nil {
		return err
	}
	err = fn(c)
	if cerr := c.Close(); err == nil {
		err = cerr
	}
	return err
}

// nvmeEntry is a discovery entry as it is printed.
type nvmeEntry struct {
	NQN     string `json:"nqn"`
	Type    string `json:"type"`
	Address string `json:"address"`
	Port    string `json:"port"`
	Family  string `json:"family"`
	PortID  uint16 `json:"port_id"`
	Secure  string `json:"secure_channel"`
}

func newNVMeDiscover(a *app) *cobra.Command {
	var f nvmeFlags
	cmd := &cobra.Command{
		Use:   "discover ADDRESS",
		Short: "List the subsystems of a target",
		Long: `List the subsystems that a target's discovery service has for this host. Without
a port 8009 is tried, and then 4420.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := f.options()
			if err != nil {
				return err
			}
			entries, generation, at, err := host.DiscoverAt(cmd.Context(), args[0], o)
			if err != nil {
				return capsule.Wrap(capsule.Other, err, "nvme discover %s", show(args[0]))
			}
			list := make([]nvmeEntry, len(entries))
			for i, e := range entries {
				list[i] = nvmeEntry{e.SubNQN, nvmeName(e.SubType, "referral", "subsystem", "this service"), e.TrAddr, e.TrSvcID,
					nvmeName(e.AdrFam, "ipv4", "ipv6"), e.PortID, nvmeName(e.TReq&3, "required", "not required")}
			}
			if a.json() {
				return a.printJSON(map[string]any{"discovery": at, "generation": generation, "entries": list})
			}
			w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintf(w, "SUBSYSTEM\tTYPE\tADDRESS\tPORT\n")
			for _, e := range list {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", printable(e.NQN), e.Type, printable(e.Address), printable(e.Port))
			}
			return w.Flush()
		},
	}
	f.add(cmd, false)
	return cmd
}

// nvmeName names a number that counts from 1.
func nvmeName(n uint8, names ...string) string {
	if n >= 1 && int(n) <= len(names) {
		return names[n-1]
	}
	return fmt.Sprint(n)
}

// nvmeController and nvmeNamespace are what identify prints.
type nvmeController struct {
	NQN         string          `json:"nqn"`
	ID          uint16          `json:"controller_id"`
	Model       string          `json:"model"`
	Serial      string          `json:"serial"`
	Firmware    string          `json:"firmware"`
	Version     string          `json:"version"`
	MaxTransfer int             `json:"max_transfer"`
	WriteCache  bool            `json:"write_cache"`
	Namespaces  []nvmeNamespace `json:"namespaces"`
}

type nvmeNamespace struct {
	NSID      uint32 `json:"nsid"`
	Size      int64  `json:"size"`
	Used      int64  `json:"used"`
	BlockSize int    `json:"block_size"`
	ReadOnly  bool   `json:"read_only"`
	NGUID     string `json:"nguid,omitempty"`
	UUID      string `json:"uuid,omitempty"`
}

func newNVMeIdentify(a *app) *cobra.Command {
	var f nvmeFlags
	cmd := &cobra.Command{
		Use:   "identify ADDRESS",
		Short: "Show what a subsystem is and which namespaces it has",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var v nvmeController
			err := f.with(cmd.Context(), args[0], 0, func(c *host.Controller) (err error) {
				v, err = identifyNVMe(cmd.Context(), c)
				return err
			})
			if err != nil {
				return capsule.Wrap(capsule.Other, err, "nvme identify %s", show(args[0]))
			}
			if a.json() {
				return a.printJSON(v)
			}
			a.fields("Subsystem", v.NQN, "Controller", fmt.Sprint(v.ID), "Model", v.Model, "Serial", v.Serial, "Firmware", v.Firmware,
				"NVMe version", v.Version, "Largest transfer", bytesText(int64(v.MaxTransfer)), "Write cache", yesNo(v.WriteCache))
			w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintf(w, "\nNSID\tSIZE\tUSED\tBLOCK\tREAD-ONLY\tUUID\n")
			for _, n := range v.Namespaces {
				fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%s\t%s\n", n.NSID, size(n.Size), size(n.Used), n.BlockSize, yesNo(n.ReadOnly), n.UUID)
			}
			return w.Flush()
		},
	}
	f.add(cmd, true)
	return cmd
}

func identifyNVMe(ctx context.Context, c *host.Controller) (nvmeController, error) {
	i := c.Info()
	v := nvmeController{NQN: c.Subsystem(), ID: c.ID(), Model: i.Model, Serial: i.Serial, Firmware: i.Firmware, Version: c.Version(),
		MaxTransfer: c.MaxTransfer(), WriteCache: i.VWC&wire.VWCPresent != 0, Namespaces: []nvmeNamespace{}}
	ids, err := c.Namespaces(ctx)
	if err != nil {
		return v, err
	}
	for _, id := range ids {
		n, err := c.Namespace(ctx, id)
		if err != nil {
			return v, err
		}
		list, err := c.Descriptors(ctx, id)
		if err != nil {
			return v, err
		}
		x := nvmeNamespace{NSID: id, Size: n.Size(), Used: int64(n.Info.NUSE) * int64(n.BlockSize), BlockSize: n.BlockSize, ReadOnly: n.ReadOnly}
		for _, d := range list {
			switch {
			case d.Type == wire.DescriptorNGUID:
				x.NGUID = fmt.Sprintf("%x", d.Value)
			case d.Type == wire.DescriptorUUID && len(d.Value) == 16:
				x.UUID = capsule.ID(d.Value).String()
			}
		}
		v.Namespaces = append(v.Namespaces, x)
	}
	return v, nil
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// nvmeMoved is what read and write print with -o json.
type nvmeMoved struct {
	NQN   string `json:"nqn"`
	NSID  uint32 `json:"nsid"`
	Bytes int64  `json:"bytes"`
}

func newNVMeRead(a *app) *cobra.Command {
	var f nvmeFlags
	var out, offset, length string
	cmd := &cobra.Command{
		Use:   "read ADDRESS",
		Short: "Write a namespace, or a range of it, to a file or standard output",
		Long: `Write a namespace's content, or a range of it, to standard output or a file. A
file appears under its name when it is whole. Content goes to a terminal only if
--out - asks for it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" && a.stdout.terminal() {
				return capsule.Errorf(capsule.Invalid, "nvme read %s: the content may not suit a terminal; use --out FILE, a pipe, or --out - to see it all the same", show(args[0]))
			}
			off, err := parseSize("--offset", offset)
			if err != nil {
				return err
			}
			count := int64(-1)
			if length != "" {
				if count, err = parseSize("--length", length); err != nil {
					return err
				}
			}
			var moved nvmeMoved
			start := time.Now()
			err = f.with(cmd.Context(), args[0], bulk, func(c *host.Controller) error {
				return a.streamNVMe(cmd.Context(), c, f.nsid, func(q *host.Queue, n *host.Namespace) error {
					if count < 0 {
						count = max(n.Size()-off, 0)
					}
					moved = nvmeMoved{c.Subsystem(), n.ID, count}
					var progress transfer.Progress
					bar := a.newBar("nvme read "+args[0], count)
					bar.follow(&progress)
					defer bar.finish()
					if out == "" || out == "-" {
						err := host.ReadTo(cmd.Context(), q, n, a.stdout, off, count, func(n int) { progress.Bytes.Add(int64(n)) })
						if ferr := a.stdout.Flush(); err == nil {
							err = ferr
						}
						return err
					}
					return transfer.WriteFile(out, &progress, func(w io.Writer) error {
						return host.ReadTo(cmd.Context(), q, n, w, off, count, nil)
					})
				})
			})
			if err != nil {
				return capsule.Wrap(capsule.Other, err, "nvme read %s", show(args[0]))
			}
			if out == "" || out == "-" {
				return nil
			}
			return a.printMoved(moved, start)
		},
	}
	f.add(cmd, true)
	f.addNSID(cmd)
	cmd.Flags().StringVar(&out, "out", "", "file to write, or - for standard output")
	cmd.Flags().StringVar(&offset, "offset", "0", "first byte to read")
	cmd.Flags().StringVar(&length, "length", "", "number of bytes to read (default: to the end)")
	return cmd
}

// streamNVMe opens a namespace and one queue for it.
func (a *app) streamNVMe(ctx context.Context, c *host.Controller, nsid uint32, fn func(*host.Queue, *host.Namespace) error) error {
	n, err := c.OnlyNamespace(ctx, nsid)
	if err != nil {
		return err
	}
	queues, err := c.OpenQueues(ctx, 1, host.StreamDepth)
	if err != nil {
		return err
	}
	return fn(queues[0], n)
}

func (a *app) printMoved(m nvmeMoved, start time.Time) error {
	if a.json() {
		return a.printJSON(m)
	}
	took := time.Since(start)
	a.fact("%s in %s (%s)", size(m.Bytes), took.Round(time.Millisecond), rate(m.Bytes, took))
	return nil
}

func newNVMeWrite(a *app) *cobra.Command {
	var f nvmeFlags
	var offset string
	var sure bool
	cmd := &cobra.Command{
		Use:   "write ADDRESS FILE|-",
		Short: "Write a file or standard input to a namespace",
		Long: `Write a file, or with "-" standard input, to a namespace, from --offset on, which
has to begin a block. When write returns, all of it is durable. What the
namespace held there is gone, so --overwrite has to say that this is meant.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			off, err := parseSize("--offset", offset)
			if err != nil {
				return err
			}
			if !sure {
				return capsule.Errorf(capsule.Invalid, "nvme write %s: this overwrites the namespace's content; give --overwrite if that is meant", show(args[0]))
			}
			in, total := a.stdin, int64(-1)
			if args[1] != "-" {
				if in, err = os.Open(args[1]); err != nil {
					return transfer.FileError(err, "nvme write")
				}
				defer in.Close()
				if st, err := in.Stat(); err == nil && st.Mode().IsRegular() {
					total = st.Size()
				}
			}
			var moved nvmeMoved
			start := time.Now()
			err = f.with(cmd.Context(), args[0], bulk, func(c *host.Controller) error {
				return a.streamNVMe(cmd.Context(), c, f.nsid, func(q *host.Queue, n *host.Namespace) error {
					if total > n.Size()-off {
						return capsule.Errorf(capsule.OutOfRange, "%s has %d bytes; from %d on namespace %d has room for %d", show(args[1]), total, off, n.ID, max(n.Size()-off, 0))
					}
					var progress transfer.Progress
					bar := a.newBar("nvme write "+args[0], total)
					bar.follow(&progress)
					defer bar.finish()
					count, err := host.WriteFrom(cmd.Context(), q, n, in, off, func(n int) { progress.Bytes.Add(int64(n)) })
					moved = nvmeMoved{c.Subsystem(), n.ID, count}
					return err
				})
			})
			if err != nil {
				return capsule.Wrap(capsule.Other, err, "nvme write %s", show(args[0]))
			}
			return a.printMoved(moved, start)
		},
	}
	f.add(cmd, true)
	f.addNSID(cmd)
	cmd.Flags().StringVar(&offset, "offset", "0", "first byte to write, where a block begins")
	cmd.Flags().BoolVar(&sure, "overwrite", false, "yes, overwrite what the namespace holds")
	return cmd
}

func newNVMeBench(a *app) *cobra.Command {
	var f nvmeFlags
	var o host.BenchOptions
	var block, offset, length string
	var sure bool
	cmd := &cobra.Command{
		Use:   "bench ADDRESS",
		Short: "Measure a namespace: commands and bytes per second, latency",
		Long: `Keep --depth commands of --size bytes in flight on each of --queues queues, for
--time, and show commands and bytes per second, and how long commands took.
Patterns are read, write (in order), randread, randwrite, and randrw. What
writes destroys the namespace's content, so --overwrite has to say that this is
meant.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			bytes, err := parseSize("--size", block)
			if err != nil {
				return err
			}
			if bytes > 1<<30 {
				return capsule.Errorf(capsule.Invalid, "--size %s is too large", block)
			}
			o.Size = int(bytes)
			if o.Offset, err = parseSize("--offset", offset); err != nil {
				return err
			}
			if length != "" {
				if o.Length, err = parseSize("--length", length); err != nil {
					return err
				}
			}
			if writes, _ := host.BenchWrites(o.Pattern); writes && !sure {
				return capsule.Errorf(capsule.Invalid, "nvme bench %s: the pattern %s overwrites the namespace's content; give --overwrite if that is meant", show(args[0]), o.Pattern)
			}
			var r *host.BenchResult
			err = f.with(cmd.Context(), args[0], o.Size, func(c *host.Controller) error {
				n, err := c.OnlyNamespace(cmd.Context(), f.nsid)
				if err != nil {
					return err
				}
				o.Done = new(atomic.Int64)
				a.fact("nvme bench: %s of %s, %d queues of %d commands, for %v", o.Pattern, size(int64(o.Size)), o.Queues, o.Depth, o.Duration)
				r, err = host.Bench(cmd.Context(), c, n, o)
				return err
			})
			if err != nil {
				return capsule.Wrap(capsule.Other, err, "nvme bench %s", show(args[0]))
			}
			if a.json() {
				return a.printJSON(r)
			}
			return a.printNVMeBench(r)
		},
	}
	f.add(cmd, true)
	f.addNSID(cmd)
	s := cmd.Flags()
	s.StringVar(&o.Pattern, "pattern", "randread", "read, write, randread, randwrite or randrw")
	s.StringVar(&block, "size", "4KiB", "bytes of one command")
	s.IntVar(&o.Depth, "depth", 32, "commands in flight, per queue")
	s.IntVar(&o.Queues, "queues", 1, "I/O queues, a connection each")
	s.DurationVar(&o.Duration, "time", 10*time.Second, "how long to measure")
	s.Int64Var(&o.Commands, "commands", 0, "end after so many commands, if that is sooner")
	s.IntVar(&o.ReadPercent, "reads", 70, "percent of reads, of randrw")
	s.StringVar(&offset, "offset", "0", "first byte of the part to use")
	s.StringVar(&length, "length", "", "bytes of the part to use (default: to the end)")
	s.BoolVar(&sure, "overwrite", false, "yes, overwrite what the namespace holds")
	cmd.RegisterFlagCompletionFunc("pattern", cobra.FixedCompletions([]string{"read", "write", "randread", "randwrite", "randrw"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *app) printNVMeBench(r *host.BenchResult) error {
	a.fields("Pattern", fmt.Sprintf("%s of %s, %s of depth %d", r.Pattern, size(int64(r.Size)), count(int64(r.Queues), "queue", "queues"), r.Depth),
		"Time", time.Duration(r.Seconds*float64(time.Second)).Round(time.Millisecond).String(),
		"Commands", fmt.Sprintf("%d (%.0f/s)", r.Commands, r.IOPS),
		"Bytes", fmt.Sprintf("%s (%s/s)", size(r.Bytes), size(int64(r.Rate))))
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\nLATENCY\tMEAN\tMIN\tP50\tP90\tP99\tP99.9\tMAX\n")
	for _, l := range []struct {
		name string
		host.BenchLatency
	}{{"read", r.Reads}, {"write", r.Writes}} {
		if l.Count > 0 {
			fmt.Fprintf(w, "%s\t%v\t%v\t%v\t%v\t%v\t%v\t%v\n", l.name, micros(l.Mean), micros(l.Min), micros(l.P50), micros(l.P90), micros(l.P99), micros(l.P999), micros(l.Max))
		}
	}
	return w.Flush()
}

func micros(d time.Duration) time.Duration { return d.Round(100 * time.Nanosecond) }

func newNVMeGenKey(a *app) *cobra.Command {
	var hash string
	var bytes int
	cmd := &cobra.Command{
		Use:   "gen-key",
		Short: "Make a secret for DH-HMAC-CHAP authentication",
		Long: `Print a new random secret in the form that hosts and targets take, DHHC-1:…, as
nvme gen-dhchap-key does. Keep it where only root can read it, and give each
host its own.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			h := dhchap.None
			if hash != "none" {
				var err error
				if h, err = dhchap.ParseHash(hash); err != nil {
					return err
				}
			}
			s, err := dhchap.GenerateSecret(h, bytes)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(map[string]string{"secret": s.Text()})
			}
			a.printf("%s\n", s.Text())
			return nil
		},
	}
	cmd.Flags().StringVar(&hash, "hash", "none", "how the secret is transformed before use: none, sha256, sha384 or sha512")
	cmd.Flags().IntVar(&bytes, "bytes", 0, "length: 32, 48 or 64 (default: as the hash has it)")
	cmd.RegisterFlagCompletionFunc("hash", cobra.FixedCompletions([]string{"none", "sha256", "sha384", "sha512"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}
