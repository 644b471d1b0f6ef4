"""Runs a command for each trial, in a place that may end at any time: a batch job.

`loop` runs a command for each trial until there is a reason to leave, `child` is that command's process, `command` its
words, `trial_socket` the socket through which it talks about its trial, and `limits` says how long this job may still
run.
Importing this package loads no Optuna.
"""
