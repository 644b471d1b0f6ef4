"""The commands `hopaas-p2p admin …`, for whole stores, for access to them, and for this machine's spool."""

from __future__ import annotations

import click

from hopaas_p2p.cli.access import grant, grants, init, revoke, token, unlock, user
from hopaas_p2p.cli.backup import backup, restore
from hopaas_p2p.cli.lazy import Group
from hopaas_p2p.cli.s3 import gc, s3_policy
from hopaas_p2p.cli.spool import spool


@click.group(cls=Group)
def admin() -> None:
    """Prepare, back up and clean a store; manage users, tokens and grants; send results waiting in the spool."""


for command in (init, user, token, grant, revoke, grants, unlock, backup, restore, gc, s3_policy, spool):
    admin.add_command(command)
