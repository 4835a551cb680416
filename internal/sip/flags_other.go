//go:build !darwin

package sip

import "errors"

type systemFlags struct{}

func (systemFlags) Restricted(string) (bool, error) { return false, errors.ErrUnsupported }
