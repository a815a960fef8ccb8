// Package warmtls has what TLS needs ready before the first connection. It is a package of its own
// so that a function without TLS does not carry crypto/tls.
package warmtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"os"
	"sync/atomic"
	"time"

	"example.com/layerkit/go-runtime/internal/note"
	"example.com/layerkit/go-runtime/warm"
)

// Roots adds a step that reads the system's root certificates, which Go else does at the first
// connection to a server: 140 files or a bundle of 200 KB to parse.
func Roots() (undo func()) {
	return warm.Add("root certificates", func(context.Context) error {
		_, err := x509.SystemCertPool()
		return err
	})
}

// checkEvery is how long a certificate is used before its file is looked at again.
const checkEvery = 10 * time.Second

// Certificate is a server's certificate from two PEM files. It is read by a step of the default
// set or at the first handshake, and again when a file has changed; while the files are bad, the
// last good one is used.
type Certificate struct {
	certFile, keyFile string
	held              atomic.Pointer[heldCertificate]
	undo              func()
}

type heldCertificate struct {
	certificate *tls.Certificate
	checked     time.Time
	stamps      [2]time.Time
}

// NewCertificate reads nothing yet.
func NewCertificate(certFile, keyFile string) *Certificate {
	c := &Certificate{certFile: certFile, keyFile: keyFile}
	c.undo = warm.Add("certificate "+certFile, func(context.Context) error {
		_, err := c.get(time.Now())
		return err
	})
	return c
}

// Get is for tls.Config.GetCertificate.
func (c *Certificate) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return c.get(time.Now())
}

// Close takes the certificate's step out of the default set.
func (c *Certificate) Close() { c.undo() }

func (c *Certificate) get(now time.Time) (*tls.Certificate, error) {
	held := c.held.Load()
	if held != nil && now.Sub(held.checked) < checkEvery {
		return held.certificate, nil
	}
	found, err := c.read(held)
	if err != nil {
		if held == nil {
			return nil, err
		}
		note.Once("certificate "+err.Error(), "certificate: %v: the last one stays", err)
		found = &heldCertificate{certificate: held.certificate, stamps: held.stamps}
	}
	found.checked = now
	c.held.Store(found)
	return found.certificate, nil
}

// read is what the files hold; held's own certificate if they have not changed since.
func (c *Certificate) read(held *heldCertificate) (*heldCertificate, error) {
	var stamps [2]time.Time
	for at, path := range []string{c.certFile, c.keyFile} {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		stamps[at] = info.ModTime()
	}
	if held != nil && stamps == held.stamps {
		return &heldCertificate{certificate: held.certificate, stamps: stamps}, nil
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return nil, err
	}
	return &heldCertificate{certificate: &pair, stamps: stamps}, nil
}
