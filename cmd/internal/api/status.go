package api

import (
	"time"

	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
	"github.com/tidemark-backup/tidemark/replay/audit"
	"github.com/tidemark-backup/tidemark/volumes"
)

// Status is what a daemon says about itself, in /v1/status and 'tidemark status -o json'.
type Status struct {
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	Now     time.Time `json:"now"` // the daemon's clock when it answered
	// Condition says why recording is paused, such as a full disk; empty while it goes on.
	Condition string         `json:"condition,omitempty"`
	Capture   CaptureStatus  `json:"capture"`
	Totals    journal.Totals `json:"totals"`
	Catalog   replay.Catalog `json:"catalog"`
	// Archives tell how each location fares.
	Archives []compactor.Status `json:"archives,omitempty"`
	// Audit is what the comparison of history with the cluster says; nil: it is off.
	Audit *audit.Report `json:"audit,omitempty"`
	// Volumes tell how the backups of volumes fare, by policy and driver.
	Volumes []VolumesStatus `json:"volumes,omitempty"`
	// Warnings are what an operator should do something about while all goes well.
	Warnings []string `json:"warnings,omitempty"`
}

// VolumesStatus says how the backups of volumes of one policy and driver fare.
type VolumesStatus struct {
	volumes.Figures
	// Limit is how old Newest may be by the policy's schedule; zero: any age.
	Limit time.Duration `json:"limit"`
}

// Age is the age of a claim's newest backup, of the claim for which it is highest.
func (s *VolumesStatus) Age(now time.Time) time.Duration {
	if s.Newest.IsZero() {
		return 0
	}
	return max(0, now.Sub(s.Newest))
}

// TooOld reports whether a claim has no backup as new as its policy's schedule promises.
func (s *VolumesStatus) TooOld(now time.Time) bool { return s.Limit > 0 && s.Age(now) > s.Limit }

// CaptureStatus says how the recording goes right now.
type CaptureStatus struct {
	Connected bool             `json:"connected"` // to the API server
	Error     string           `json:"error,omitempty"`
	Server    string           `json:"server,omitempty"` // the API server's address
	Resources []ResourceStatus `json:"resources,omitempty"`
	// Unmatched are the patterns of 'run --include' that no resource of the cluster matches.
	Unmatched []string `json:"unmatched,omitempty"`
	// LeftOut says what is not recorded, and why.
	LeftOut []journal.LeftOut `json:"leftOut,omitempty"`
}

// ResourceStatus says how the recording of one resource goes.
type ResourceStatus struct {
	Resource string    `json:"resource"` // "deployments.apps"
	State    string    `json:"state"`    // watching, listing, waiting or forbidden
	Error    string    `json:"error,omitempty"`
	Since    time.Time `json:"since"` // when the state began
}

// Resource returns the status of the resource, or nil.
func (s *CaptureStatus) Resource(name string) *ResourceStatus {
	for i := range s.Resources {
		if s.Resources[i].Resource == name {
			return &s.Resources[i]
		}
	}
	return nil
}
