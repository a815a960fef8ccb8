// net/rpc with gob and JSON.
package main

import (
	"encoding/gob"
	"errors"
	"log"
	"net"
	"net/rpc"
	"net/rpc/jsonrpc"
)

type Args struct{ A, B int }

type Sum int

func (s *Sum) Add(args *Args, reply *int) error {
	*reply = args.A + args.B
	return nil
}

func (s *Sum) Div(args *Args, reply *int) error {
	if args.B == 0 {
		return errors.New("division by zero")
	}
	*reply = args.A / args.B
	return nil
}

func main() {
	gob.Register(Args{})
	if err := rpc.Register(new(Sum)); err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go jsonrpc.ServeConn(c)
	}
}
