//go:build race

package agent_test

// underRace: the detector keeps a shadow of memory, so sizes say nothing.
const underRace = true
