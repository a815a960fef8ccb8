// Makes a certificate.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log"
	"math/big"
	"net/http"
	"time"
)

func handle(w http.ResponseWriter, r *http.Request) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		http.Error(w, err.Error(), 500)
		return
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: r.Host},
		NotAfter:     time.Now().Add(time.Hour),
		DNSNames:     []string{r.Host},
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	if err != nil {
		http.Error(w, err.Error(), 500)
		return
	}
	_ = pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func main() {
	http.HandleFunc("/", handle)
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil))
}
