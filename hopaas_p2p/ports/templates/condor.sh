#!/bin/sh
# Written by hopaas-p2p for the HTCondor job @name@. `exec` makes HTCondor's SIGTERM go to the worker itself.
@exports@
exec @worker@
