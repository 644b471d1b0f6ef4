"""Files of studies and trials beside their log: artifacts to keep, and checkpoints from which trials resume."""
