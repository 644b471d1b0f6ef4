"""A store in a directory that all peers see, on a local or a shared file system."""
