"""Studies described in YAML, for `study create --from-yaml`: a sweep of Weights & Biases, or keys in Optuna's terms."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.sweeps import description, wandb
from hopaas_p2p.sweeps.description import StudyDescription

__all__ = ["StudyDescription", "read"]

_OF_A_SWEEP: Final = {"method", "program", "metric", "early_terminate", "run_cap"}
"""A file with one of these keys is a W&B sweep."""


def read(path: Path) -> StudyDescription:
    """The study that this file describes.

    Raises:
        InvalidInput: the file cannot be read, or asks for something that is not possible; one line that says where.

    """
    content = _yaml(path)
    if not isinstance(content, dict) or not content:
        raise InvalidInput(f"{path}: not a mapping of keys such as name, direction and space")
    try:
        return wandb.describe(content) if _OF_A_SWEEP & content.keys() else description.describe(content)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None


def _yaml(path: Path) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads 1e-5 as a number, as YAML 1.2 does."""

    number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)  # noqa: S506  # a SafeLoader
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is not UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InvalidInput(f"{path}{line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}: {' '.join(str(error).split())[:200]}") from None
