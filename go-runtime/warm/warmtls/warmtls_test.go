package warmtls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"example.com/layerkit/go-runtime/warm"
)

// write makes a certificate with that serial number; its files are of that time.
func write(t *testing.T, folder string, serial int64, at time.Time) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour)}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	rawKey, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem")
	for path, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: raw}, keyFile: {Type: "PRIVATE KEY", Bytes: rawKey},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

func serial(t *testing.T, c *Certificate, now time.Time) int64 {
	t.Helper()
	got, err := c.get(now)
	if err != nil {
		t.Fatal(err)
	}
	return got.Leaf.SerialNumber.Int64()
}

func TestACertificateIsReadAgainWhenItChanged(t *testing.T) {
	folder, now := t.TempDir(), time.Now()
	c := NewCertificate(write(t, folder, 1, now.Add(-time.Hour)))
	defer c.Close()
	if got := serial(t, c, now); got != 1 {
		t.Errorf("first: got %d", got)
	}
	write(t, folder, 2, now)
	if got := serial(t, c, now.Add(time.Second)); got != 1 {
		t.Errorf("within %v: got %d", checkEvery, got)
	}
	if got := serial(t, c, now.Add(2*checkEvery)); got != 2 {
		t.Errorf("after it changed: got %d", got)
	}
	if err := os.WriteFile(filepath.Join(folder, "cert.pem"), []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := serial(t, c, now.Add(4*checkEvery)); got != 2 {
		t.Errorf("while it is bad: got %d", got)
	}
}

func TestAMissingCertificateIsAnError(t *testing.T) {
	c := NewCertificate("/nowhere/cert.pem", "/nowhere/key.pem")
	defer c.Close()
	if _, err := c.Get(nil); err == nil {
		t.Error("got no error")
	}
	if err := warm.Err(warm.Default.Run(t.Context())); err == nil {
		t.Error("the step: got no error")
	}
}

func TestRootsAreRead(t *testing.T) {
	undo := Roots()
	defer undo()
	if got := warm.Default.Run(t.Context()); len(got) != 1 || got[0].Name != "root certificates" {
		t.Errorf("got %+v", got)
	}
}
