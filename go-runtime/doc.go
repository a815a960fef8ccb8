// Package runtime is the module that layerkit's functions may import: small helpers around the
// standard library, without dependencies. Package serve runs an HTTP handler until SIGTERM.
package runtime
