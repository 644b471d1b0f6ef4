"""The logger of the library; programs configure it by its name. Importing `errors` keeps each message on one line."""

from __future__ import annotations

import logging
from typing import Final

LOG: Final = logging.getLogger("hopaas_p2p")
