package a

import (
	"context"
	"time"
)

type server struct {
	work    chan int
	results chan error
	closed  chan int
	slots   chan struct{}
	post    chan string
}

func newServer() *server { return &server{post: make(chan string, 8), work: make(chan int)} }

func (s *server) waits(ctx context.Context, given chan int) {
	select { // want `select waits though ctx is done`
	case <-s.work:
	case err := <-s.results:
		_ = err
	}
	<-s.results      // want `receive waits though ctx is done`
	value := <-given // want `receive waits`
	_ = value
	select { // want `select waits`
	case s.work <- 1:
	}
}

func (s *server) holds(ctx context.Context) {
	text := <-s.post
	defer func() { s.post <- text }()
}

func (s *server) watches(ctx context.Context) {
	select {
	case <-s.work:
	case <-ctx.Done():
	}
	select {
	case <-s.work:
	case <-time.After(time.Second):
	}
	select {
	case <-s.work:
	default:
	}
	select {
	case s.post <- "x":
	case <-s.work:
	}
	<-s.closed
	<-s.slots
	timer := time.NewTimer(time.Second)
	<-timer.C
	select {
	case <-ctx.Done():
		select {
		case <-s.work:
		default:
		}
	case <-s.results:
		<-s.work // want `receive waits`
	}
}

func own(ctx context.Context) error {
	errs := make(chan error)
	go func() { errs <- nil }()
	return <-errs
}

func beside(ctx context.Context, s *server) {
	go func() { <-s.work }()
	defer func() { <-s.work }()
}

func none(s *server) { <-s.work }

func (s *server) removeAll(ctx context.Context) {
	for len(s.work) > 0 {
		<-s.work
	}
}
