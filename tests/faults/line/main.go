// Line carries packets between two TUN devices as a network line would: each is late by a delay,
// leaves at a rate, and some are lost. For kernels without netem; tests/faults/netns.py starts it in
// a network namespace of its own and moves each device to its machine.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"syscall"
	"time"
	"unsafe"
)

const (
	queue  = 1000 // packets on their way, as netem's default; more are dropped
	packet = 1 << 16
)

type late struct {
	at   time.Time
	data []byte
}

// openDevice makes a TUN device: packets without any head of its own (linux/if_tun.h).
func openDevice(name string) (*os.File, error) {
	fd, err := syscall.Open("/dev/net/tun", syscall.O_RDWR|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	var request struct {
		name  [syscall.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}
	copy(request.name[:syscall.IFNAMSIZ-1], name)
	request.flags = syscall.IFF_TUN | syscall.IFF_NO_PI
	_, _, number := syscall.Syscall(
		syscall.SYS_IOCTL, uintptr(fd), syscall.TUNSETIFF, uintptr(unsafe.Pointer(&request)),
	)
	if number != 0 {
		return nil, fmt.Errorf("TUNSETIFF %s: %w", name, number)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// take reads packets as they come and says when each is to arrive.
func take(from *os.File, delay time.Duration, rate, loss float64, seed uint64, out chan<- late) {
	chance := rand.New(rand.NewPCG(seed, 0))
	buffer := make([]byte, packet)
	var free time.Time // when the line is free again
	for {
		size, err := from.Read(buffer)
		if err != nil {
			log.Fatalf("read %s: %v", from.Name(), err)
		}
		if chance.Float64() < loss {
			continue
		}
		now := time.Now()
		if free.Before(now) {
			free = now
		}
		if rate > 0 {
			free = free.Add(time.Duration(float64(size*8) / rate * float64(time.Second)))
		}
		select {
		case out <- late{free.Add(delay), append([]byte(nil), buffer[:size]...)}:
		default: // the queue is full
		}
	}
}

func give(to *os.File, in <-chan late) {
	for one := range in {
		time.Sleep(time.Until(one.at))
		// a device that is down, or not there yet, takes nothing: lost, as on any line
		_, _ = to.Write(one.data)
	}
}

func main() {
	delay := flag.Duration("delay", 0, "one way")
	rate := flag.Float64("rate", 0, "bits a second each way; 0: as fast as it goes")
	loss := flag.Float64("loss", 0, "share of the packets")
	seed := flag.Uint64("seed", 1, "of what is lost")
	flag.Parse()
	if flag.NArg() != 2 {
		log.Fatal("usage: line [flags] DEVICE DEVICE")
	}
	var ends [2]*os.File
	for index := range ends {
		device, err := openDevice(flag.Arg(index))
		if err != nil {
			log.Fatal(err)
		}
		ends[index] = device
	}
	fmt.Println("ready")
	// devices are read only when both have moved and are up: Python says so by a line
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return
	}
	for index, from := range ends {
		way := make(chan late, queue)
		go take(from, *delay, *rate, *loss, *seed+uint64(index), way)
		go give(ends[1-index], way)
	}
	select {}
}
