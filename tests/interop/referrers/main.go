// Command referrers serves one of two registries that have the referrers API of OCI 1.1, from
// memory: the one of go-containerregistry, or CUE's.
package main

import (
	"flag"
	"io"
	"log"
	"net/http"

	"cuelabs.dev/go/oci/ociregistry/ocimem"
	"cuelabs.dev/go/oci/ociregistry/ociserver"
	"github.com/google/go-containerregistry/pkg/registry"
)

func main() {
	kind := flag.String("kind", "", "go-containerregistry or ociregistry")
	address := flag.String("address", "127.0.0.1:0", "where to listen")
	flag.Parse()
	var handler http.Handler
	switch *kind {
	case "go-containerregistry":
		quiet := registry.Logger(log.New(io.Discard, "", 0))
		handler = registry.New(registry.WithReferrersSupport(true), quiet)
	case "ociregistry":
		handler = ociserver.New(ocimem.New(), nil)
	default:
		log.Fatalf("no kind %q", *kind)
	}
	log.Fatal(http.ListenAndServe(*address, handler))
}
