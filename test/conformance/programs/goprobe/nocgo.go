//go:build !cgo

package main

func askC() {}
