"""The options with which `hopaas-p2p dashboard` was started. Every session of this process reads them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DashboardOptions:
    """How the dashboard was started."""

    store: str = ""
    """The store's URL."""
    host: str = "127.0.0.1"
    port: int = 8501
    actions: bool = False
    """Whether people may change studies from here, within their grants."""
    auth: str = "none"
    """Either "none", or "oidc" for a sign-in through the provider that HOPAAS_OIDC_FILE names."""
    base_path: str = ""
    open_browser: bool = False
    optuna_port: int | None = None
    """The port where optuna-dashboard shows the same storage; None if it does not run."""
    optuna_address: str = ""
    """The address that opens optuna-dashboard in a browser; empty if it does not run."""
    allowed_hosts: tuple[str, ...] = ()
    """Further host names under which a proxy serves this server."""

    @property
    def prefix(self) -> str:
        """The path under which a proxy serves this server. It is empty, or has a leading slash and no trailing one."""
        path = self.base_path.strip("/")
        return f"/{path}" if path else ""


_current = DashboardOptions()


def use(options: DashboardOptions) -> None:
    """Make these the options of this process."""
    global _current
    _current = options


def current() -> DashboardOptions:
    """The options of this process."""
    return _current
