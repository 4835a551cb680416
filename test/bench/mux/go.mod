// The libraries measured here are no dependencies of stead: this module is on its own.
module github.com/stead-dev/stead/test/bench/mux

go 1.26.0

replace github.com/stead-dev/stead => ../../..

require github.com/stead-dev/stead v0.0.0

require (
	github.com/hashicorp/yamux v0.1.2 // indirect
	github.com/xtaci/smux v1.5.58 // indirect
)
