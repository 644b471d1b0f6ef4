"""The command line, with one file per group of commands. It uses only public names of the layers below."""
