// The libraries measured here are no dependencies of stead: this module is on its own.
module github.com/stead-dev/stead/test/bench/mux

go 1.26.0

replace github.com/stead-dev/stead => ../../..

require (
	github.com/hashicorp/yamux v0.1.2
	github.com/stead-dev/stead v0.0.0
	github.com/xtaci/smux v1.5.58
)

require golang.org/x/sys v0.49.0 // indirect
