"""The command line. One file a group of verbs; built on the public names only."""
