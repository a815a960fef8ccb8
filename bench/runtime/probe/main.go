// Command probe starts a function again and again, and times from exec to the first answered byte,
// the first requests against the hundredth, and the first TLS handshake. It prints JSON.
package main

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"time"
)

type sample struct {
	Exec      float64   `json:"exec"`      // s until the first answered byte
	Warm      float64   `json:"warm"`      // s of the probe; 0 without one
	Handshake float64   `json:"handshake"` // s of the TLS handshake; 0 without one
	Latencies []float64 `json:"latencies"` // s of the requests after it
}

// plan is what is asked of each start.
type plan struct {
	path  string
	probe bool
	tls   bool
	count int
	gap   time.Duration
}

func main() {
	var p plan
	rounds := flag.Int("rounds", 20, "starts")
	flag.StringVar(&p.path, "path", "/?name=you", "of the requests")
	flag.BoolVar(&p.probe, "probe", false, "ask /warmz first")
	flag.BoolVar(&p.tls, "tls", false, "send the requests by TLS, to the next port")
	flag.IntVar(&p.count, "count", 100, "requests after the start")
	flag.DurationVar(&p.gap, "gap", 0, "before each request")
	flag.Parse()
	var samples []sample
	for range *rounds {
		one, err := p.run(flag.Args())
		if err != nil {
			log.Fatal(err)
		}
		samples = append(samples, one)
	}
	if err := json.NewEncoder(os.Stdout).Encode(samples); err != nil {
		log.Fatal(err)
	}
}

func (p plan) run(argv []string) (sample, error) {
	port, err := freePorts()
	if err != nil {
		return sample{}, err
	}
	command := exec.Command(argv[0], argv[1:]...)
	command.Env = append(os.Environ(), "PORT="+strconv.Itoa(port), "HOST=127.0.0.1")
	started := time.Now()
	if err := command.Start(); err != nil {
		return sample{}, err
	}
	defer func() { _ = command.Process.Kill(); _ = command.Wait() }()
	c, err := dial(port, started)
	if err != nil {
		return sample{}, err
	}
	defer c.Close()
	found := sample{}
	if p.probe {
		if found.Warm, err = c.ask("/warmz"); err != nil {
			return sample{}, err
		}
	}
	if p.tls {
		secure, err := dial(port+1, started)
		if err != nil {
			return sample{}, err
		}
		defer secure.Close()
		if found.Handshake, err = secure.startTLS(); err != nil {
			return sample{}, err
		}
		c = secure
	}
	for at := range p.count {
		time.Sleep(p.gap)
		seconds, err := c.ask(p.path)
		if err != nil {
			return sample{}, err
		}
		if at == 0 {
			found.Exec = time.Since(started).Seconds()
		}
		found.Latencies = append(found.Latencies, seconds)
	}
	return found, nil
}

// connection asks over one connection, with as little of its own as can be.
type connection struct {
	net.Conn
	reader *bufio.Reader
}

func dial(port int, started time.Time) (*connection, error) {
	for {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			return &connection{conn, bufio.NewReader(conn)}, nil
		}
		if time.Since(started) > 10*time.Second {
			return nil, err
		}
		time.Sleep(100 * time.Microsecond)
	}
}

func (c *connection) startTLS() (float64, error) {
	started := time.Now()
	conn := tls.Client(c.Conn, &tls.Config{InsecureSkipVerify: true})
	if err := conn.Handshake(); err != nil {
		return 0, err
	}
	c.Conn, c.reader = conn, bufio.NewReader(conn)
	return time.Since(started).Seconds(), nil
}

func (c *connection) ask(path string) (float64, error) {
	request := "GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n"
	started := time.Now()
	if _, err := c.Write([]byte(request)); err != nil {
		return 0, err
	}
	if _, err := c.reader.Peek(1); err != nil {
		return 0, err
	}
	took := time.Since(started)
	response, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s: status %d", path, response.StatusCode)
	}
	buffer := make([]byte, 4096)
	for {
		if _, err := response.Body.Read(buffer); err != nil {
			break
		}
	}
	return took.Seconds(), nil
}

// freePorts is a port that is free, as is the next one.
func freePorts() (int, error) {
	for {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		port := listener.Addr().(*net.TCPAddr).Port
		next, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+1))
		listener.Close()
		if err == nil {
			next.Close()
			return port, nil
		}
	}
}
