// Package tap prints the Test Anything Protocol, version 13, as the validation programs ask for it.
package tap

import (
	"encoding/json"
	"fmt"
	"strings"
)

// T counts the test points of one program.
type T struct {
	points *int
	mark   string
}

// New returns a count of none.
func New() *T {
	return &T{points: new(int)}
}

// Todo is the same count; its points are known not to hold yet.
func (t *T) Todo() *T {
	return &T{points: t.points, mark: "# TODO "}
}

// Header announces the protocol and, if it is known already, how many points there will be.
func (t *T) Header(points int) {
	fmt.Println("TAP version 13")
	if points > 0 {
		fmt.Printf("1..%d\n", points)
	}
}

// Ok is a point that passes if the condition holds.
func (t *T) Ok(holds bool, description string) {
	*t.points++
	verdict := "ok"
	if !holds {
		verdict = "not ok"
	}
	fmt.Printf("%s %d - %s%s\n", verdict, *t.points, t.mark, strings.ReplaceAll(description, "\n", " "))
}

// Pass is a point that passes.
func (t *T) Pass(description string) {
	t.Ok(true, description)
}

// Fail is a point that doesn't.
func (t *T) Fail(description string) {
	t.Ok(false, description)
}

// Skip is so many points that can't be tried here.
func (t *T) Skip(points int, reason string) {
	for ; points > 0; points-- {
		*t.points++
		fmt.Printf("ok %d # SKIP %s\n", *t.points, reason)
	}
}

// AutoPlan says at the end how many points there were.
func (t *T) AutoPlan() {
	fmt.Printf("1..%d\n", *t.points)
}

// Diagnostic is a remark for people.
func (t *T) Diagnostic(remark string) {
	fmt.Println("# " + strings.ReplaceAll(strings.TrimSpace(remark), "\n", "\n# "))
}

// Diagnosticf is a remark for people, formatted.
func (t *T) Diagnosticf(format string, values ...interface{}) {
	t.Diagnostic(fmt.Sprintf(format, values...))
}

// YAML describes the point before it; JSON is YAML.
func (t *T) YAML(description interface{}) error {
	text, err := json.MarshalIndent(description, "  ", "  ")
	if err == nil {
		fmt.Printf("  ---\n  %s\n  ...\n", text)
	}
	return err
}
