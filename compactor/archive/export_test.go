package archive


// SetPartAt makes an S3 store send files in parts from a smaller size on.
func SetPartAt(s Store, size int64) { s.(*S3Store).partAt = size }

