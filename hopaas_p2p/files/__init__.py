"""Files of studies and trials beside their log: artifacts that people keep, checkpoints that trials resume from."""
