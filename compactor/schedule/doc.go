// Package schedule decides when a snapshot is due, as pure functions with the semantics of
// Kubernetes' CronJob, whose parser it uses.
//
// A Schedule is made by Parse. Due is asked with the time of the last run and the present time,
// and says what to do and when to ask again; the only state is that last time, which the caller
// keeps. There is no loop, no timer and no clock in here.
//
// Times are those of the wall clock in the schedule's time zone, as the parser sees them: a time that
// is skipped when clocks go forward does not come that day, and one that comes twice when they go
// back runs twice. Who wants neither leaves the hours of the change alone, or uses UTC.
package schedule
