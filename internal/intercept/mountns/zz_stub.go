package mountns

// temporary
type Plan struct{}

func Enter(*Plan, func(int) error) error { return nil }
