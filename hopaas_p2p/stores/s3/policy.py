"""The minimal rights that a key needs, as a policy for the S3 server.

On Amazon's servers, a worker may write commits and snapshots only where nothing exists, so it cannot change history.
Other servers cannot enforce that condition, so a hostile worker could overwrite commits there; enable versioning of the
bucket.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from hopaas_p2p.stores.s3.address import Address, is_aws

Role = Literal["viewer", "worker", "owner"]
ROLES: Final[tuple[Role, ...]] = ("viewer", "worker", "owner")


def policy(address: Address, role: Role, *, uuid: str | None = None, by_prefix: bool = True) -> dict[str, Any]:
    """A policy document for one key.

    Args:
        address: the store.
        role: a viewer reads, a worker runs trials, and an owner may also remove anything.
        uuid: the one study to which a worker may write; None for every study.
        by_prefix: whether listing is allowed only under the store's prefix. Some servers then answer 403 for a free
            key, where a log needs 404. If False, keys of the whole bucket may be listed.

    """
    bucket = f"arn:aws:s3:::{address.bucket}"
    root = f"{bucket}/{address.root}"
    prefixes = [address.root, f"{address.root}*"]
    may_list = {"StringLike": {"s3:prefix": prefixes}}
    statements: list[dict[str, Any]] = [
        _allow("Look", ["s3:ListBucket"], [bucket], may_list if by_prefix else None),
        _allow("Read", ["s3:GetObject"], [f"{root}*"]),
    ]
    if role == "worker":
        names = ["*"] if uuid is None else [uuid, "doctor-*"]  # the scratch of `hopaas-p2p doctor`
        snapshots = [f"{root}study/{name}/snapshot/*" for name in names]
        files = f"{root}artifacts/{names[0]}/*"
        logs = [f"{root}study/{name}/log/*" for name in names]
        if uuid is None:
            logs += [f"{root}studies/log/*", f"{root}meta.json"]  # this worker may create studies, and the store
            snapshots.append(f"{root}studies/snapshot/*")
        statements += [
            _allow("Add", ["s3:PutObject"], logs),
            _allow("Live", ["s3:PutObject"], [f"{root}beats/*"]),
            _allow("Keep", ["s3:PutObject", "s3:DeleteObject"], snapshots),
            _allow("Files", ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"], [files]),
        ]
        if is_aws(address.endpoint):
            statements.append(_never_overwrite([*logs, *snapshots]))
    if role == "owner":
        actions = ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
        statements.append(_allow("Write", actions, [f"{root}*"]))
        if is_aws(address.endpoint):
            history = ["study/*/log/*", "study/*/snapshot/*", "studies/log/*", "studies/snapshot/*", "meta.json"]
            statements.append(_never_overwrite([f"{root}{one}" for one in history]))
    return {"Version": "2012-10-17", "Statement": statements}


def _allow(
    name: str, actions: list[str], resources: list[str], condition: dict[str, Any] | None = None
) -> dict[str, Any]:
    statement = {"Sid": name, "Effect": "Allow", "Action": actions, "Resource": resources}
    return statement if condition is None else {**statement, "Condition": condition}


def _never_overwrite(resources: list[str]) -> dict[str, Any]:
    """Refuse a PUT without If-None-Match, see "Enforce conditional writes" in Amazon's S3 user guide."""
    without = {"Null": {"s3:if-none-match": "true"}}
    return _allow("NeverOverwrite", ["s3:PutObject"], resources, without) | {"Effect": "Deny"}
