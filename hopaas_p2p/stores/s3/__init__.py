"""A bucket: the log as one object per commit, snapshots, beats and files, on any S3 that honours `If-None-Match: *`."""
