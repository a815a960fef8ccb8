// Reads a database.
package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log"
	"net/http"
)

type fake struct{}

func (fake) Open(name string) (driver.Conn, error) { return nil, errors.New("no database " + name) }

func init() { sql.Register("fake", fake{}) }

func handle(w http.ResponseWriter, r *http.Request) {
	db, err := sql.Open("fake", r.URL.Query().Get("dsn"))
	if err != nil {
		http.Error(w, err.Error(), 500)
		return
	}
	defer db.Close()
	rows, err := db.QueryContext(context.WithoutCancel(r.Context()), "select id, amount from entries where id > ?", 7)
	if err != nil {
		http.Error(w, err.Error(), 503)
		return
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		var amount sql.NullFloat64
		if rows.Scan(&id, &amount) == nil {
			fmt.Fprintln(w, id, amount.Float64)
		}
	}
}

func main() {
	http.HandleFunc("/", handle)
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil))
}
