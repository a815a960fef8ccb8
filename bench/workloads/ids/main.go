// Ids by google/uuid, in order.
package main

import (
	"container/heap"
	"fmt"
	"hash/fnv"
	"log"
	"net/http"
	"strconv"
	"unicode/utf8"

	"github.com/google/uuid"
)

type queue []string

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i] < q[j] }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)        { *q = append(*q, x.(string)) }
func (q *queue) Pop() any {
	old := *q
	last := old[len(old)-1]
	*q = old[:len(old)-1]
	return last
}

func handle(w http.ResponseWriter, r *http.Request) {
	n, _ := strconv.Atoi(r.URL.Query().Get("n"))
	q := &queue{}
	for i := 0; i < min(n, 100); i++ {
		heap.Push(q, uuid.NewString())
	}
	for q.Len() > 0 {
		id := heap.Pop(q).(string)
		h := fnv.New32a()
		_, _ = h.Write([]byte(id))
		fmt.Fprintln(w, id, h.Sum32(), utf8.RuneCountInString(id))
	}
}

func main() {
	http.HandleFunc("/", handle)
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil))
}
