package session

type files struct{}
type Files struct{}
