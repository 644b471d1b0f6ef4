"""The entry point, which finds the command, runs it, and turns every error into one line and an exit code.

0 ok · 1 failure · 2 usage · 3 no work · 10 prune · 11 lease lost · 69 store unreachable · 75 run again ·
77 denied · 78 configuration · 130 interrupted. Data goes to stdout, messages to stderr; a traceback is shown with
`--debug` or HOPAAS_DEBUG.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final, NoReturn

import click

from hopaas_p2p.cli.lazy import Group

PROGRAM: Final = "hopaas-p2p"
_CLI: Final = "hopaas_p2p.cli"

SECTIONS: Final[dict[str, dict[str, tuple[str, str]]]] = {
    "Run trials": {
        "join": (f"{_CLI}.join:join", "Join a study with an invitation, and run a command for each trial."),
        "worker": (f"{_CLI}.worker:worker", "Run a command for each trial, until the study is done."),
        "run": (f"{_CLI}.worker:run", "Run a command for exactly one trial."),
        "submit": (f"{_CLI}.submit:submit", "Write the batch jobs of a study, and submit them."),
    },
    "Studies": {
        "study": (f"{_CLI}.study:study", "Create, list, show, control, export and import studies."),
        "trial": (f"{_CLI}.trial:trial", "Run a trial step by step; list, show, queue and stop trials; manage files."),
        "peers": (f"{_CLI}.peers:peers", "List the peers of a study; ask some to take no more trials."),
        "invite": (f"{_CLI}.invite:invite", "Print one string that lets somebody join a study."),
    },
    "Watch": {
        "watch": (f"{_CLI}.watch:watch", "Follow a study until it is done."),
        "dashboard": (f"{_CLI}.dashboard:dashboard", "Watch studies in a browser."),
        "demo": (f"{_CLI}.demo:demo", "Watch three processes tune a classifier together, in about a minute."),
    },
    "Stores": {
        "doctor": (f"{_CLI}.doctor:doctor", "Check a store, and say how to fix what fails."),
        "serve": (f"{_CLI}.serve:serve", "Let other machines, programs and agents take part through this machine."),
        "admin": (f"{_CLI}.admin:admin", "Prepare, back up and clean a store; manage users, grants and the spool."),
    },
    "Settings": {
        "config": (f"{_CLI}.config:config", "Show the settings, and where each comes from."),
        "completion": (f"{_CLI}.config:completion", "Print the completion script of a shell."),
    },
}
"""The commands, in the sections of `--help`."""


@click.group(
    PROGRAM,
    cls=Group,
    sections=SECTIONS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True},
    epilog="A command's own help: hopaas-p2p COMMAND --help",
)
@click.version_option(package_name="hopaas-p2p", prog_name=PROGRAM)
@click.option("--debug", is_flag=True, expose_value=False, help="Show a traceback when something goes wrong.")
def cli() -> None:
    """Tune hyperparameters together. Every process runs Optuna, and all processes share one log.

    Name the store, a directory such as ./campaign or a URL, with --store after the command, with HOPAAS_STORE, or in
    hopaas.toml. Name the study with --study or HOPAAS_STUDY, or as an argument where a command takes it.
    """


def main() -> NoReturn:
    """Run the command line, and exit with its exit code."""
    _open_closed_streams()
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # the disk is full or the reader has ended; Python would flush again at exit and exit with 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            code = code or 1
    sys.exit(code)


def _open_closed_streams() -> None:
    """Replace each of stdin, stdout and stderr that the shell has closed with /dev/null.

    Otherwise the next opened file would get the closed descriptor, and the output meant for that stream.
    """
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            break
        os.set_inheritable(descriptor, True)  # for commands that a worker starts
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            stream = open(number, "w" if number else "r", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def run(arguments: list[str]) -> int:
    """Run one command line; returns its exit code."""
    debug = "--debug" in arguments or bool(os.environ.get("HOPAAS_DEBUG"))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(arguments, prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has closed our output
        return 1
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # each becomes one line and an exit code
        if debug and not isinstance(error, click.ClickException | click.Abort | KeyboardInterrupt):
            import traceback

            _complain(traceback.format_exc().rstrip())
            return 1
        return _explain(error)
    return code if isinstance(code, int) else 0


def _explain(error: BaseException) -> int:
    """Print one line about the error; returns its exit code."""
    from hopaas_p2p.errors import HopaasError

    code, message = 1, f"{type(error).__name__}: {str(error).rstrip('.')}. For a traceback, add --debug."
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    if isinstance(error, click.Abort | KeyboardInterrupt):
        code, message = 130, "interrupted"
    elif isinstance(error, click.ClickException):
        code, message = error.exit_code, error.format_message()
        for kind in ("integer", "float"):  # click's words for a number with limits
            message = message.replace(f"is not a valid {kind} range.", f"is not a valid {kind}.")
        if isinstance(error, click.NoSuchOption) and error.ctx is not None and isinstance(error.ctx.command, Group):
            message = f"{error.option_name!r} is not an option here. Put the options of a command after its name."
        elif isinstance(error, click.NoSuchOption) and (option := error.option_name) in ("--sampler", "--pruner"):
            message = f"{option!r} is not an option here. To set it: hopaas-p2p study set STUDY {option} NAME"
        elif isinstance(error, click.NoSuchOption) and option in ("--store", "-s"):
            message = f"'--store' is not an option here. {error.ctx.get_usage() if error.ctx else ''}"
        if isinstance(error, click.UsageError) and error.ctx is not None:
            message += f" (see: {error.ctx.command_path} --help)"
    elif isinstance(error, HopaasError):
        from hopaas_p2p.cli import output

        code, message = error.exit_code, str(error)
        if message == output.warned:  # a thread of this process met the same error, and logged it
            return code
    elif isinstance(error, OSError):
        message = f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}"
    _complain(message)
    return code


def _complain(message: str) -> None:
    from hopaas_p2p.cli.output import printable
    from hopaas_p2p.runtime.redaction import without_passwords

    with contextlib.suppress(OSError):  # no stderr; the exit code remains
        click.echo(f"{PROGRAM}: {printable(without_passwords(message), lines=True)}", err=True)


if __name__ == "__main__":
    main()
