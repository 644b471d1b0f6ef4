"""The command `hopaas-p2p join`, which joins a study with an invitation, finds a route to its store, and runs
trials.
"""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from hopaas_p2p.cli import output
from hopaas_p2p.cli.options import CliSession, CommandAfterDashes, command
from hopaas_p2p.cli.submit import JOB_OPTIONS, job_options, submit_joined
from hopaas_p2p.cli.worker import work, worker_options
from hopaas_p2p.errors import ConfigurationError, InvalidInput, explained
from hopaas_p2p.joining import membership as memberships
from hopaas_p2p.joining import ways
from hopaas_p2p.joining.invitation import Invitation
from hopaas_p2p.joining.login_node import can_be_relayed, start
from hopaas_p2p.ports import batch
from hopaas_p2p.runtime.atomic import read_named
from hopaas_p2p.runtime.settings import joined_names, variable

if TYPE_CHECKING:
    from hopaas_p2p.joining.membership import Membership

VIA: Final = ("auto", "direct", "folder")
"""How jobs can reach a store. With `auto`, a relay is also started on the login node, for jobs that need one."""
_LONGEST: Final = 1 << 16
_STDIN: Final = 2.0  # seconds to wait for piped input if a study is already joined


@command(cls=CommandAfterDashes, needs_command=False, study="none", store=False)
@click.argument("file", required=False, metavar="[FILE|-]")
@click.option("--submit", "system", type=click.Choice(batch.SYSTEMS), help="Run the trials in batch jobs.")
@click.option("--via", type=click.Choice(VIA), help="How jobs reach the store. [default: as last time, or auto]")
@click.option("--login-node", metavar="HOST", help="This node's name on compute nodes. [default: its own]")
@click.option("--leave", metavar="[NAME]", is_flag=False, flag_value="", help="Leave a study: remove its files here.")
@job_options
@worker_options
def join(
    session: CliSession,
    file: str | None,
    command: tuple[str, ...],
    system: str | None,
    via: str | None,
    login_node: str | None,
    leave: str | None,
    **given: Any,
) -> int:
    """Join a study with an invitation, and run a command for each trial.

    \b
    hopaas-p2p join north.invitation -- python train.py --lr {lr} --depth {depth}
    hopaas-p2p join --submit slurm --jobs 20 -- python train.py --lr {lr} --depth {depth}

    The invitation is read from FILE or from standard input; otherwise you are asked for it. It is a secret, so never
    give it as an argument. Its contents and this site's route to the store are kept in ~/.config/hopaas-p2p/joined,
    readable only by you. A route is direct, through the proxy in HTTPS_PROXY, or through a relay or a folder on the
    login node. From then on, you need no invitation. In every directory without a configured store, all commands use
    this study until you leave it: hopaas-p2p join --leave NAME.

    With --submit, this command writes the batch script, shows it and submits it, as `submit` does; --via auto starts a
    relay here for jobs that need one. Everything else works as in `worker`.
    """  # noqa: D301  # click needs the backspace
    before = joined_names()
    if leave is not None:
        leave = before[0] if not leave and len(before) == 1 else leave
        if leave not in before:
            why = f"{leave!r} is not joined here" if leave else "name the study to leave with --leave NAME"
            raise InvalidInput(f"{why}; joined studies: {', '.join(before) or 'none'}")
        memberships.forget(leave)
        output.say(f"Left {leave!r}. Its files on this machine were removed; the store is unchanged.")
        return 0
    membership = _membership(file, site=given["site"] or "")
    ways.enter(membership)
    try:
        kind, membership = ways.find(membership, lambda finding: output.say(output.finding_text(finding)))
    except ConfigurationError as error:
        if membership.name not in before or system is not None or not command:
            raise
        output.say(f"{error}. In the meantime, this job waits for the store")
        kind = "as last time"
    ways.enter(membership)
    output.say(f"Study {membership.study!r} in {membership.store}. Connection: {kind}")
    if membership.name not in before:
        where = (
            f"commands under HOPAAS_JOINED={membership.name}" if before else "every command for which no store is set"
        )
        undo = f"To undo this: hopaas-p2p join --leave {membership.name}"
        output.say(
            f"From now on, this study is used by {where}; `hopaas-p2p config show` shows which settings apply. {undo}"
        )
    if system is not None:
        submit_joined(session, system, _prepare(membership, via, login_node), command, given)
        return 0
    if not command:
        output.say(f"Joined {membership.study!r}. To run trials: hopaas-p2p join -- COMMAND")
        return 0
    code, _ = work(session, command, **{name: one for name, one in given.items() if name not in JOB_OPTIONS})
    return code


def _prepare(membership: Membership, via: str | None, login_node: str | None) -> Membership:
    """Start the relay or the server that jobs need on this node, and record how jobs reach the store."""
    via = via or membership.values.get("via", "auto")
    if via == "folder":
        (pid, log), why = start(membership, "folder"), "needs no network on the nodes"
    elif via != "direct" and can_be_relayed(membership.store):
        (pid, log), why = start(membership, "relay", known_as=login_node), "serves nodes that can reach only this one"
    else:
        return membership.changed(via=via)
    what = "folder server" if via == "folder" else "relay"
    if pid is None:
        output.say(f"a {what} is already running on this node")
    else:
        output.say(f"started a {what} on this node, which {why}. Its log is {log}. To stop it: kill {pid}")
    return membership.changed(via=via)


def _membership(file: str | None, *, site: str) -> Membership:
    """The study of this invitation or, without one, the study that was joined before."""
    if text := _read(file):
        return memberships.accept(Invitation.parse(text), site=site)
    known = joined_names()
    named = os.environ.get(variable("joined")) or (known[0] if len(known) == 1 else None)
    if named is None and known:
        raise InvalidInput(f"several studies are joined here; set HOPAAS_JOINED to one of: {', '.join(known)}")
    if named is None:
        raise InvalidInput("no study is joined here yet. To join one: hopaas-p2p join FILE -- COMMAND")
    return memberships.load(named)


def _read(file: str | None) -> str:
    """The text of the invitation; empty if none was given."""
    if file is not None and file.lstrip("\"' \n").startswith("hpj1-"):
        raise InvalidInput(
            "an invitation may contain a token, and arguments are visible in every process list. Pass it on standard "
            "input or in a file. If it contains a token, ask for a new one, because this one has been exposed"
        )
    if file is not None and file != "-":
        cure = ". Give the invitation's file, and put the command after --"
        with explained(file, cure, kind=InvalidInput):
            text = read_named(Path(file)).strip()
        if not text:
            raise InvalidInput(f"{file} contains no invitation; it should contain what `hopaas-p2p invite` printed")
        return text
    at_terminal = sys.stdin is not None and sys.stdin.isatty()
    if sys.stdin is None or (file is None and os.environ.get(variable("joined"))):
        return ""
    if file is None and joined_names() and (at_terminal or not select.select([sys.stdin], [], [], _STDIN)[0]):
        return ""  # a batch system can leave standard input open without ever writing to it
    if at_terminal:
        return str(click.prompt("Paste an invitation to a study (it stays hidden)", hide_input=True, err=True)).strip()
    return sys.stdin.read(_LONGEST).strip()
