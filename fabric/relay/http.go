package relay

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
)

// HTTP is an Exchanger over HTTPS: each exchange is a POST to URL.
type HTTP struct {
	URL    string
	Client *http.Client
	Header http.Header // sent with each request, such as credentials for a proxy
}

// Exchange implements Exchanger.
func (h *HTTP) Exchange(ctx context.Context, batch []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL, bytes.NewReader(batch))
	if err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	for k, v := range h.Header {
		req.Header[k] = v
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := h.Client.Do(req)
	if err != nil {
		var check *tls.CertificateVerificationError
		var alert *net.OpError
		if errors.As(err, &check) || errors.As(err, &alert) && alert.Op == "remote error" {
			return nil, fmt.Errorf("%w: %w", ErrRefused, err)
		}
		return nil, fmt.Errorf("relay: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxMessage)) // it only helps to explain
		return nil, fmt.Errorf("relay: %s: %s: %q", h.URL, resp.Status, text)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxBatch+1))
	if err != nil {
		return nil, fmt.Errorf("relay: read the answer of %s: %w", h.URL, err)
	}
	return body, nil
}
