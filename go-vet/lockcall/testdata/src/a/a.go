package a

import (
	"net/http"
	"os/exec"
	"sync"
	"time"
)

type cache struct {
	mu   sync.Mutex
	rw   sync.RWMutex
	cond *sync.Cond
	work chan int
	post chan int

	closed chan struct{}
	free   chan int
}

func newCache() *cache { return &cache{work: make(chan int), post: make(chan int, 1)} }

func (c *cache) deferred() {
	c.mu.Lock()
	defer c.mu.Unlock()
	http.Get("http://x")    // want `c.mu is held over net/http.Get, which may block`
	time.Sleep(time.Second) // want `c.mu is held over time.Sleep`
	c.work <- 1             // want `a send to c.work`
	<-c.free                // want `a receive from c.free`
	c.post <- 1
	<-c.post
	c.cond.Wait()
	go http.Get("http://x")
	select { // want `a select`
	case <-c.work:
	}
	select {
	case <-c.work:
	default:
	}
	select {
	case c.work <- 1:
	case <-c.closed:
	}
}

func (c *cache) between() {
	c.rw.RLock()
	if true {
		time.Sleep(time.Second) // want `c.rw is held over time.Sleep`
	}
	c.rw.RUnlock()
	time.Sleep(time.Second)
}

func (c *cache) branch(full bool) {
	c.mu.Lock()
	if full {
		c.mu.Unlock()
		time.Sleep(time.Second)
		return
	}
	time.Sleep(time.Second) // want `c.mu is held`
	c.mu.Unlock()
}

func (c *cache) later() func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	return func() { time.Sleep(time.Second) }
}

type pool struct {
	mu      sync.Mutex
	workers sync.WaitGroup
	stopc   chan chan int
	tasks   chan int
}

func newPool() *pool { return &pool{stopc: make(chan chan int), tasks: make(chan int)} }

func (p *pool) drain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.workers.Wait() // want `p.mu is held over sync.WaitGroup.Wait`
	var own sync.WaitGroup
	work := make(chan int)
	go func() { <-work }()
	work <- 1
	own.Wait()
	p.stopc <- nil
	select {
	case <-p.tasks:
	case <-time.After(time.Second):
	}
}

func (p *pool) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tasks <- 1
	p.workers.Wait()
	http.Get("http://x") // want `net/http.Get`
}

func (p *pool) runs(command *exec.Cmd) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := command.Start(); err != nil {
		command.Wait()
	}
	command.Wait() // want `os/exec.Cmd.Wait`
	task := <-p.tasks
	defer func() { p.tasks <- task }()
	return task
}
