package helper

import "embed"

//go:embed arm64
var carried embed.FS

const dir = "arm64"
