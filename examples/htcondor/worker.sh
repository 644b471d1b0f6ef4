#!/bin/sh
# What an HTCondor job runs. `exec`, so that HTCondor's SIGTERM goes to the worker itself.
exec hopaas-p2p worker --time-limit auto --grace "${HOPAAS_GRACE:-300}" -- "$@"
