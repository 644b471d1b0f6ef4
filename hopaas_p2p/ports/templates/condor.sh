#!/bin/sh
# Written by hopaas-p2p: what the HTCondor job @name@ runs. `exec`, so that HTCondor's SIGTERM goes to the worker itself.
@exports@
exec @worker@
