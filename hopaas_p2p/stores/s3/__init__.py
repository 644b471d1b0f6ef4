"""A bucket: the log as one object a commit, snapshots, beats and files, on any S3 that keeps `If-None-Match: *`."""
