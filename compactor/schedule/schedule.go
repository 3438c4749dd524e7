package schedule

import (
	"errors"
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // the image of the daemon has no time zones of its own

	"github.com/robfig/cron/v3"
	"k8s.io/apimachinery/pkg/util/validation"
)

const (
	// maxName is CronJob's bound: the names of runs have the time behind it.
	maxName = 52
	// minEvery is the least for @every; cron's own smallest step.
	minEvery = time.Minute
	every    = "@every "
)

// Spec is what a person declares.
type Spec struct {
	// Name is a Kubernetes name, of at most 52 characters.
	Name string `json:"name"`
	// Cron is "minute hour day-of-month month day-of-week", or @hourly, @daily, @weekly, @monthly,
	// @yearly, or @every DURATION. When both days are given, either is enough.
	Cron string `json:"cron"`
	// TimeZone is a name of the IANA database, such as Europe/Berlin. Empty: UTC.
	TimeZone string `json:"timeZone,omitempty"`
	// StartingDeadline is how late a run may start; one that is later is left out. Zero: any time.
	StartingDeadline time.Duration `json:"startingDeadline,omitempty"`
	// Concurrency is Forbid by default.
	Concurrency Concurrency `json:"concurrency,omitempty"`
	// Suspend stops new runs. When it ends, the most recent missed run is due, as with CronJob.
	Suspend bool `json:"suspend,omitempty"`
}

// Schedule is a Spec that was understood. It does not change.
type Schedule struct {
	spec  Spec
	zone  *time.Location
	cron  cron.Schedule
	every time.Duration // of @every, else zero
}

// Parse reads a spec. It refuses what CronJob refuses, and schedules that never come.
func Parse(spec Spec) (*Schedule, error) {
	s := &Schedule{spec: spec}
	if err := s.parse(); err != nil {
		return nil, fmt.Errorf("schedule %q: %w", spec.Name, err)
	}
	return s, nil
}

func (s *Schedule) parse() error {
	spec := &s.spec
	if bad := validation.IsDNS1123Subdomain(spec.Name); len(bad) > 0 {
		return fmt.Errorf("its name: %s", bad[0])
	}
	if len(spec.Name) > maxName {
		return fmt.Errorf("its name has more than %d characters", maxName)
	}
	if spec.StartingDeadline < 0 {
		return fmt.Errorf("a starting deadline of %s is in the past: want 0 or more", spec.StartingDeadline)
	}
	if spec.Concurrency != Forbid && spec.Concurrency != Allow {
		return fmt.Errorf("%s: want Forbid or Allow", spec.Concurrency)
	}
	var err error
	if s.zone, err = zone(spec.TimeZone); err != nil {
		return err
	}
	if strings.Contains(spec.Cron, "TZ=") {
		return fmt.Errorf("cron %q: the time zone does not belong there: give it as the time zone", spec.Cron)
	}
	if text, ok := strings.CutPrefix(spec.Cron, every); ok {
		if s.every, err = time.ParseDuration(text); err != nil || s.every < minEvery || s.every%time.Second != 0 {
			return fmt.Errorf("cron %q: want whole seconds, at least %s, such as @every 90m", spec.Cron, minEvery)
		}
		return nil
	}
	if s.cron, err = parseCron(spec.Cron, s.zone); err != nil {
		return fmt.Errorf("cron %q: %w: want five fields, such as '0 3 * * *', or @daily", spec.Cron, err)
	}
	// A year before a leap day, so that one is within the five years that the parser looks ahead.
	if s.Next(time.Date(2023, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return fmt.Errorf("cron %q: that time never comes", spec.Cron)
	}
	return nil
}

func zone(name string) (*time.Location, error) {
	if name == "" {
		return time.UTC, nil
	}
	if strings.EqualFold(name, "local") { // it would differ from machine to machine
		return nil, fmt.Errorf("time zone %q: want a name such as Europe/Berlin, or UTC", name)
	}
	loc, err := time.LoadLocation(name)
	if err != nil {
		return nil, fmt.Errorf("time zone %q is not known: want a name such as Europe/Berlin, or UTC", name)
	}
	return loc, nil
}

// parseCron reads what CronJob reads. The parser has panicked on bad input before
// (robfig/cron#554), and a schedule comes from users.
func parseCron(text string, zone *time.Location) (c cron.Schedule, err error) {
	defer func() {
		if recover() != nil {
			c, err = nil, errors.New("it cannot be read")
		}
	}()
	c, err = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor).Parse(text)
	if err != nil {
		return nil, err
	}
	fields, ok := c.(*cron.SpecSchedule)
	if !ok {
		return nil, errors.New("it cannot be read")
	}
	fields.Location = zone
	return c, nil
}

// Spec is what the schedule was made of.
func (s *Schedule) Spec() Spec { return s.spec }

// Next is the first time after that one at which the schedule comes, in its time zone. Zero: not
// within five years. @every counts from the beginning of 1970, UTC, so that it needs no state and
// does not drift.
func (s *Schedule) Next(after time.Time) time.Time {
	if s.every > 0 {
		step := int64(s.every / time.Second)
		n := after.Unix() / step
		if after.Unix()%step < 0 {
			n--
		}
		return time.Unix((n+1)*step, 0).In(s.zone)
	}
	return s.cron.Next(after.In(s.zone))
}
