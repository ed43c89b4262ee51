package admit

import (
	"cmp"
	"slices"
)

// Numbers are of one account, or of all of a scope.
type Numbers struct {
	Sessions int64 `json:"sessions"`
	Tunnels  int64 `json:"tunnels"`
	Streams  int64 `json:"streams"`
	Window   int64 `json:"window_bytes"`
	Passed   int64 `json:"passed_bytes"` // ever
}

// Usage is an account as it is now.
type Usage struct {
	Scope   Scope   `json:"scope"`
	Name    string  `json:"name,omitempty"`
	Used    Numbers `json:"used"`
	Limit   Limit   `json:"limit"`
	Refused int64   `json:"refused"` // ever
}

// Total is all accounts of a scope, and those that were forgotten.
type Total struct {
	Scope    Scope            `json:"scope"`
	Accounts int              `json:"accounts"` // that are known now
	Passed   int64            `json:"passed_bytes"`
	Refused  map[string]int64 `json:"refused"` // ever, by what
	refused  [whats]int64
}

func (t *Total) add(a *account) {
	t.Passed += a.passed.Load()
	for w := range whats {
		t.refused[w] += a.refused[w].Load()
	}
}

// Totals returns every scope's totals. Those of organizations, say, are no
// sums of what moved: something may count for none.
func (c *Controller) Totals() []Total {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]Total, Scopes)
	for s := range Scopes {
		t := c.past[s]
		t.Scope, t.Accounts, t.Refused = s, len(c.accounts[s]), map[string]int64{}
		for _, a := range c.accounts[s] {
			t.add(a)
		}
		for w, n := range t.refused {
			t.Refused[What(w).String()] = n
		}
		all[s] = t
	}
	return all
}

// Usage returns at most limit accounts of each scope: those that somebody holds,
// and of these those with the most streams, first.
func (c *Controller) Usage(limit int) (all []Usage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range Scopes {
		accounts := make([]*account, 0, len(c.accounts[s]))
		streams := map[*account]int64{}
		for _, a := range c.accounts[s] {
			accounts = append(accounts, a)
			streams[a] = a.used[Streams].Load()
		}
		slices.SortFunc(accounts, func(a, b *account) int {
			return cmp.Or(cmp.Compare(min(b.held, 1), min(a.held, 1)), cmp.Compare(streams[b], streams[a]), cmp.Compare(a.key.Name, b.key.Name))
		})
		for _, a := range accounts[:min(limit, len(accounts))] {
			u := Usage{Scope: s, Name: a.key.Name, Limit: *a.limit.Load(), Used: Numbers{
				Sessions: a.used[Sessions].Load(), Tunnels: a.used[Tunnels].Load(), Streams: streams[a],
				Window: a.used[Window].Load(), Passed: a.passed.Load()}}
			for w := range whats {
				u.Refused += a.refused[w].Load()
			}
			all = append(all, u)
		}
	}
	return all
}
