#!/bin/sh
# The program of an HTCondor job. `exec` makes HTCondor's SIGTERM go to the worker itself.
exec hopaas-p2p worker --time-limit auto --grace "${HOPAAS_GRACE:-300}" -- "$@"
