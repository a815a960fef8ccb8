package a

import (
	"context"
	"log"
	"time"
)

func work() {}

func forever() {
	for {
		work()
	}
}

func withEnd(stop chan int) {
	for {
		select {
		case <-stop:
			return
		default:
			work()
		}
	}
}

func starts(ctx context.Context, ticker *time.Ticker) {
	go forever() // want `goroutine runs on when ctx is done: it loops without an end`
	go func() {  // want `loops over a ticker`
		for range ticker.C {
			work()
		}
	}()
	go func() { // want `loops without an end`
		for {
			switch {
			case true:
				break
			}
		}
	}()
	go withEnd(nil)
	go work()
	go func() {
		for ctx.Err() == nil {
			work()
		}
	}()
	go func() {
		for {
			log.Fatal("x")
		}
	}()
	go func() {
		for range ticker.C {
			break
		}
	}()
	go func(ctx context.Context) {
		for {
			work()
		}
	}(ctx)
}

func stuck(ctx context.Context) error {
	errs := make(chan error)
	go func() { errs <- nil }() // want `nobody receives from errs then`
	select {
	case err := <-errs:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func buffered(ctx context.Context) error {
	errs := make(chan error, 1)
	go func() { errs <- nil }()
	select {
	case err := <-errs:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func waited(ctx context.Context) error {
	errs := make(chan error)
	go func() { errs <- nil }()
	select {
	case err := <-errs:
		return err
	case <-ctx.Done():
		<-errs
		return ctx.Err()
	}
}

func none(ticker *time.Ticker) { go forever() }
