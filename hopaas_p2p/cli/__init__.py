"""The command line: one file per group of commands, on public names of the layers below."""
