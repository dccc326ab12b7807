//go:build tools

// Package h2spec pins what tests/h2spec.sh builds.
package h2spec

import _ "github.com/summerwind/h2spec/cmd/h2spec"
