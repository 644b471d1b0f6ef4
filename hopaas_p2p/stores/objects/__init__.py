"""One log over write-once objects, for buckets and directories alike."""
