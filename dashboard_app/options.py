"""What `hopaas-p2p dashboard` was told, for every session of this process to read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """How the dashboard was started."""

    stores: tuple[str, ...] = ()
    """URLs; the first is shown when the browser's address names none."""
    host: str = "127.0.0.1"
    port: int = 8501
    actions: bool = False
    """Whether people may change studies from here, as far as their grants go."""
    auth: str = "none"
    """"none", or "oidc": sign in through the provider that Streamlit's secrets name."""
    base_path: str = ""
    open_browser: bool = False
    optuna_port: int | None = None
    """Where optuna-dashboard shows the same storage, if it does."""


_current = Options()


def use(options: Options) -> None:
    """Serve with these from now on."""
    global _current
    _current = options


def current() -> Options:
    """The options of this process."""
    return _current
