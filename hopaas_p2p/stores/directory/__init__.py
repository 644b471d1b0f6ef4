"""A directory that all peers see, also on a shared file system."""
