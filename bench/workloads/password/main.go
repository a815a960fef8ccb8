// Hashes passwords by x/crypto.
package main

import (
	"encoding/base64"
	"fmt"
	"log"
	"net/http"

	"golang.org/x/crypto/bcrypt"
	"golang.org/x/crypto/chacha20poly1305"
)

func handle(w http.ResponseWriter, r *http.Request) {
	hash, err := bcrypt.GenerateFromPassword([]byte(r.FormValue("password")), 10)
	if err != nil {
		http.Error(w, err.Error(), 400)
		return
	}
	box, err := chacha20poly1305.NewX(make([]byte, 32))
	if err != nil {
		http.Error(w, err.Error(), 500)
		return
	}
	sealed := box.Seal(nil, make([]byte, box.NonceSize()), hash, nil)
	fmt.Fprintln(w, base64.StdEncoding.EncodeToString(sealed))
}

func main() {
	http.HandleFunc("/", handle)
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil))
}
