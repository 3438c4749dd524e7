package archive

import "time"

// SetPartSize makes an S3 store send files in parts of another size, those that are larger.
func SetPartSize(s Store, size int64) { s.(*S3Store).partAt, s.(*S3Store).partSize = size, size }

// SetUploadLife makes Sweep take younger uploads for dead.
func SetUploadLife(s Store, d time.Duration) { s.(*S3Store).uploadLife = d }

// SetPatience makes an S3 store give up sooner or later.
func SetPatience(s Store, d time.Duration) { s.(*S3Store).patience = d }

// Sleep is the wait between two tries.
var Sleep = sleep
