package helper

import "embed"

//go:embed amd64
var carried embed.FS

const dir = "amd64"
