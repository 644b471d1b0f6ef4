"""`hopaas-p2p join`: from an invitation to running trials, by whichever way this node reaches the store."""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from hopaas_p2p.cli import output
from hopaas_p2p.cli.after_dashes import CommandAfterDashes
from hopaas_p2p.cli.options import CliSession, options
from hopaas_p2p.cli.submit import job_options, split, submit_joined
from hopaas_p2p.cli.worker import work, worker_options
from hopaas_p2p.errors import ConfigurationError, InvalidInput
from hopaas_p2p.joining import membership as memberships
from hopaas_p2p.joining import ways
from hopaas_p2p.joining.invitation import Invitation
from hopaas_p2p.joining.login_node import can_be_relayed, start_bridge, start_relay
from hopaas_p2p.ports import batch
from hopaas_p2p.settings import joined_names, variable

if TYPE_CHECKING:
    from hopaas_p2p.findings import Finding
    from hopaas_p2p.joining.membership import Membership

_LONGEST: Final = 1 << 16
_STDIN: Final = 2.0  # seconds for which something that is piped in is waited for, where a study is joined already


@click.command(cls=CommandAfterDashes)
@options(study="none", store=False)
@click.argument("file", required=False, metavar="[FILE|-]")
@click.option("--submit", "system", type=click.Choice(batch.SYSTEMS), help="Run the trials in batch jobs.")
@click.option(
    "--via",
    type=click.Choice(["auto", "direct", "relay", "bridge"]),
    help="How jobs reach the store; auto starts a relay here for those that need one. [default: as last time, or auto]",
)
@click.option("--login-node", metavar="HOST", help="The name that jobs know this node by. [default: its own]")
@click.option("--leave", metavar="NAME", help="Undo a join: remove what is kept of it here.")
@job_options
@click.option("--max-trials", type=click.IntRange(min=1), metavar="N", help="Stop after N trials.")
@click.option("--stay", is_flag=True, help="Stay until the study is finished, to take over trials of dead workers.")
@worker_options
def join(
    session: CliSession,
    file: str | None,
    command: tuple[str, ...],
    system: str | None,
    via: str | None,
    login_node: str | None,
    leave: str | None,
    **others: Any,
) -> int:
    """Join a study with an invitation, and run a command for each trial.

    \b
    hopaas-p2p join north.invitation -- python train.py --lr {lr} --depth {depth}
    hopaas-p2p join --submit slurm --jobs 20 -- python train.py --lr {lr} --depth {depth}

    The invitation is read from FILE or from standard input; otherwise you are asked for it. It is a secret: never give
    it as an argument. Its contents are kept in ~/.config/hopaas-p2p/joined, readable by you only, together with how
    this site reaches the store: directly, through the proxy in HTTPS_PROXY, or through a relay or bridge on the login
    node. From then on you need no invitation, and in every directory that names no store, all commands use this study
    until you leave it: hopaas-p2p join --leave NAME.

    With --submit it writes the batch script, shows it and submits it, as `submit` does. Everything else works as
    in `worker`.
    """  # noqa: D301  # click's mark for lines that stay as they are
    if leave is not None:
        return _leave(leave)
    before = joined_names()
    membership = _membership(file, site=others["site"] or "")
    membership = _reach(membership)
    if membership.name not in before:
        where = (
            f"commands under HOPAAS_JOINED={membership.name} use" if before else "every directory without a store uses"
        )
        output.say(
            f"From now on, {where} this study; `hopaas-p2p config show` says what counts. To undo this: "
            f"hopaas-p2p join --leave {membership.name}"
        )
    request, worker = split(others)
    if system is not None:
        membership = _prepare(membership, via, login_node)
        submit_joined(session, system, membership, command, request, worker)
        return 0
    if not command:
        output.say(f"Joined {membership.study!r}. To run trials: hopaas-p2p join -- COMMAND")
        return 0
    code, _ = work(session, command, **worker)
    return code


def _leave(name: str) -> int:
    if name not in joined_names():
        raise InvalidInput(f"{name!r} is not joined here; joined: {', '.join(joined_names()) or 'none'}")
    memberships.forget(name)
    output.say(f"Left {name!r}: its invitation and how to reach it are removed here. Its store keeps what was written.")
    return 0


def _prepare(membership: Membership, via: str | None, login_node: str | None) -> Membership:
    """Start what jobs need on this node, and keep by which way they go."""
    via = via or membership.values.get("via", "auto")
    relayed = can_be_relayed(membership.store)
    if via == "relay" and not relayed:
        raise InvalidInput(f"a relay cannot reach {membership.store}, which does not use HTTPS; use --via bridge")
    if via == "bridge":
        process = start_bridge(membership)
    elif relayed and via != "direct":
        process = start_relay(membership, known_as=login_node)
    else:
        return membership.with_via(via)
    what = "bridge" if via == "bridge" else "relay"
    if process.pid is None:
        output.say(f"a {what} is already running here")
    else:
        why = "needs no network on the nodes" if via == "bridge" else "serves nodes that can reach only this one"
        output.say(f"started a {what} here, which {why}. To stop it: kill {process.pid}; its log: {process.log}")
    return membership.with_via(via)


def _membership(file: str | None, *, site: str) -> Membership:
    """What is joined: by the invitation, or before."""
    text = _read(file)
    if text:
        return memberships.accept(Invitation.parse(text), site=site)
    named, known = os.environ.get(variable("joined")), joined_names()
    if not named and not known:
        raise InvalidInput("no study is joined here yet: hopaas-p2p join FILE -- COMMAND")
    if not named and len(known) > 1:
        raise InvalidInput(f"several studies are joined here; choose one: HOPAAS_JOINED={'|'.join(known)}")
    try:
        return memberships.load(named or known[0])
    except FileNotFoundError:
        raise ConfigurationError(f"{named!r} is not joined here; joined: {', '.join(known) or 'none'}") from None


def _read(file: str | None) -> str:
    """The invitation as it was given; empty if there is none."""
    if file is not None and file.lstrip("\"' \n").startswith("hpj1-"):
        raise InvalidInput(
            "arguments are visible in every process list, and an invitation may contain a token: pass it on standard "
            "input, or in a file. If it has a token, ask for a new invitation, since this one has been exposed"
        )
    if file not in (None, "-"):
        try:
            with Path(str(file)).expanduser().open() as opened:
                return opened.read(_LONGEST).strip() or _nothing_in(str(file))
        except UnicodeDecodeError:
            return _nothing_in(str(file))
        except OSError as error:
            raise InvalidInput(
                f"{file}: {error.strerror}. Give the file of the invitation; the command goes after --"
            ) from None
    if sys.stdin is None:
        return ""
    if file is None and (os.environ.get(variable("joined")) or (joined_names() and not _comes_by_stdin())):
        return ""
    if sys.stdin.isatty():
        return str(click.prompt("Invitation", hide_input=True, err=True)).strip()
    return sys.stdin.read(_LONGEST).strip()


def _comes_by_stdin() -> bool:
    """Whether something is piped in. A batch system may leave standard input open, and never write to it."""
    if sys.stdin.isatty():
        return False
    ready, _, _ = select.select([sys.stdin], [], [], _STDIN)
    return bool(ready)


def _nothing_in(file: str) -> str:
    raise InvalidInput(f"{file} contains no invitation; it should contain what `hopaas-p2p invite` printed")


def _reach(membership: Membership) -> Membership:
    """Find the way to the store, and let this process take it."""
    ways.enter(membership)
    way, membership = ways.find(membership, _say)
    ways.enter(membership)
    output.say(f"Study {membership.study!r} in {membership.store}. Connection: {way.kind}")
    return membership


def _say(finding: Finding) -> None:
    word = "passed" if finding.passed else "failed"
    output.say(f"{word}  {finding.check}: {finding.detail}" + (f"\n        -> {finding.cure}" if finding.cure else ""))
