// Sends a mail.
package main

import (
	"fmt"
	"log"
	"net/http"
	"net/mail"
	"net/smtp"
	"os"
)

func send(to, text string) error {
	addr, err := mail.ParseAddress(to)
	if err != nil {
		return fmt.Errorf("address: %w", err)
	}
	auth := smtp.PlainAuth("", os.Getenv("SMTP_USER"), os.Getenv("SMTP_PASS"), "localhost")
	return smtp.SendMail("localhost:25", auth, "fn@example.com", []string{addr.Address}, []byte(text))
}

func handle(w http.ResponseWriter, r *http.Request) {
	if err := send(r.FormValue("to"), "Subject: hello\r\n\r\n"+r.FormValue("text")); err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
	}
}

func main() {
	http.HandleFunc("/", handle)
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil))
}
