// Large numbers, no server.
package main

import (
	"fmt"
	"math/big"
	"math/cmplx"
	"math/rand"
	"os"
)

func fib(n int) *big.Int {
	a, b := big.NewInt(0), big.NewInt(1)
	for i := 0; i < n; i++ {
		a.Add(a, b)
		a, b = b, a
	}
	return a
}

func main() {
	fmt.Fprintln(os.Stdout, fib(500), new(big.Rat).SetFrac64(355, 113).FloatString(30))
	fmt.Println(cmplx.Exp(complex(0, rand.Float64())), fib(90).ProbablyPrime(20))
	x := new(big.Float).SetPrec(200).SetInt64(2)
	fmt.Println(x.Sqrt(x).Text('g', 50))
}
