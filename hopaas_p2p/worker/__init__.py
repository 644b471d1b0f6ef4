"""Runs a command for each trial, in a place that may end at any time: a batch job.

`loop` decides which trial, `running` runs one as a command, `child` is that command's process, `desk` the socket at
which it reports, `limits` what the batch system says of the time left. Importing this loads no Optuna.
"""
