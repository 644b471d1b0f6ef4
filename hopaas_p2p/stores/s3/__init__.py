"""A store in a bucket, with one object per commit, on any S3 server that honours `If-None-Match: *`."""
