package shifter

import (
	"github.com/shiftoverlay/shiftoverlay/internal/engine"
)

// EngineState says whether an engine can be used here.
type EngineState struct {
	Name string
	// Refused says why the engine does not work here, and Avoided why Auto
	// passes it over although it works; "" if that is not so.
	Refused, Avoided string
	// Detail says in which way it works, if there are several.
	Detail string
	// Chosen says that this is the engine in use.
	Chosen bool
}

// Engines describes every engine, cheapest first.
func (s *Shifter) Engines() []EngineState {
	list := engines(s.o.Env)
	out := make([]EngineState, len(list))
	for i, e := range list {
		out[i] = EngineState{Name: e.Name(), Chosen: e.Name() == s.choice.Engine.Name()}
		if err := e.Check(s.o.Env); err != nil {
			out[i].Refused = err.Error()
			continue
		}
		if l, ok := e.(engine.Lossy); ok {
			if err := l.Avoid(s.o.Env); err != nil {
				out[i].Avoided = err.Error()
			}
		}
		if n, ok := e.(engine.Noter); ok {
			out[i].Detail = n.Note()
		}
	}
	return out
}

// ByName returns the engine of a name, nil if there is none.
func (s *Shifter) ByName(name string) engine.Engine {
	for _, e := range engines(s.o.Env) {
		if e.Name() == name {
			return e
		}
	}
	return nil
}
