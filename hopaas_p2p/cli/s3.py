"""The commands `hopaas-p2p admin gc` and `s3-policy`, which only buckets need."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from hopaas_p2p.cli import output
from hopaas_p2p.cli.options import CliSession, Columns, command, role_option
from hopaas_p2p.errors import ConfigurationError, InvalidInput
from hopaas_p2p.stores.s3.address import parse
from hopaas_p2p.stores.s3.gc import collect
from hopaas_p2p.stores.s3.policy import ROLES, policy
from hopaas_p2p.stores.s3.store import S3Store

if TYPE_CHECKING:
    from hopaas_p2p.stores.s3.address import Address


def _address(session: CliSession) -> Address:
    if not session.store_url.lower().startswith("s3://"):
        raise ConfigurationError("This command is for buckets only. Use --store s3://bucket/prefix?endpoint=…")
    return parse(session.store_url)


@command(study="none")
@click.option("--dry-run", is_flag=True, help="Only list the objects to be removed.")
@click.option("--keep", default=24, type=click.FloatRange(24), metavar="HOURS", help="Keep objects younger than this.")
def gc(session: CliSession, dry_run: bool, keep: float) -> None:
    """Remove from a bucket old commits that snapshots replace, and the remains of deleted studies.

    Cleaning up is never required. Afterwards, studies cannot be replayed from their first commit. Peers that
    were suspended for longer than --keep notice this and rejoin.
    """
    _address(session)
    columns: Columns = {"study": "study", "what": "what", "objects": "objects", "size": output.size_in("size")}
    rows: list[dict[str, Any]] = []
    try:
        with contextlib.closing(S3Store(session.store_url, create=False)) as store:
            rows.extend(one._asdict() for one in collect(store, keep=keep * 3600.0, dry_run=dry_run))
    finally:  # also before an error
        if rows:
            session.show_table(rows, columns, right=("objects", "size"))
            total = sum(one["objects"] for one in rows)
            if not session.as_json:
                objects = output.count(total, "object")
                output.say(f"{objects} would be removed." if dry_run else f"Removed {objects}.")
    if not rows:
        session.show_table(rows, columns, empty="Nothing to remove.")


@command("s3-policy")
@role_option
@click.option("--all-studies", is_flag=True, help="Allow every study, including future ones.")
@click.option("--no-condition", is_flag=True, help="Allow listing without a prefix, if `doctor` recommends it.")
def s3_policy(session: CliSession, role: str, all_studies: bool, no_condition: bool) -> None:
    """Print the smallest policy that gives an access key the rights of a role.

    Give it to the S3 server, for example with `mc admin policy create` or `aws iam put-user-policy --policy-document`.
    """
    address = _address(session)
    if role != "worker" and session.given["study"] is not None:
        raise InvalidInput(f"the policy of {role}s covers all studies of the store; omit --study")
    uuid = session.study().handle.uuid if role == "worker" and not all_studies else None
    chosen = next(one for one in ROLES if one == role)
    output.print_json(policy(address, chosen, uuid=uuid, by_prefix=not no_condition))
