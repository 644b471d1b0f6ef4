"""Studies described in YAML, for `study create --from-yaml`: a sweep of Weights & Biases, or keys in Optuna's terms."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any, Final

from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.moving import descriptions, wandb
from hopaas_p2p.moving.descriptions import StudyDescription
from hopaas_p2p.runtime.atomic import read_regular

_OF_A_SWEEP: Final = {"method", "program", "metric", "early_terminate", "run_cap"}
"""A file with one of these keys is a W&B sweep."""
_LARGEST: Final = 1 << 20
"""Bytes of a file; a megabyte takes seconds to read."""
_MOST_VALUES: Final = 100_000


def read(path: Path) -> StudyDescription:
    """The study that this file describes.

    Raises:
        InvalidInput: the file cannot be read, or asks for something that is not possible; one line that says where.

    """
    content = _yaml(path)
    if not isinstance(content, dict) or not content:
        raise InvalidInput(f"{path}: not a mapping of keys such as name, direction and space")
    try:
        return wandb.describe(content) if _OF_A_SWEEP & content.keys() else descriptions.describe(content)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None


def _yaml(path: Path) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads 1e-5 as a number, as YAML 1.2 does. An anchor stands for a bounded number of values."""

        def get_single_node(self) -> yaml.Node | None:
            root = super().get_single_node()
            if root is not None and _size(root, {}) > _MOST_VALUES:
                raise ValueError(f"its anchors and aliases stand for more than {_MOST_VALUES:,} values")
            return root

    def _size(node: yaml.Node, known: dict[int, int]) -> int:
        """The number of values that a reader of this node meets; one that is in itself has no end of them."""
        found = known.get(id(node))
        if found is None:
            known[id(node)] = _MOST_VALUES + 1  # while it is being counted
            parts = node.value if isinstance(node, yaml.CollectionNode) else ()
            below = itertools.chain.from_iterable(part if isinstance(part, tuple) else (part,) for part in parts)
            found = known[id(node)] = 1 + sum(_size(one, known) for one in below)
        return found

    number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    try:
        return yaml.load(read_regular(path, limit=_LARGEST, named=True).decode(), Loader)  # noqa: S506  # a SafeLoader
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is not UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InvalidInput(f"{path}{line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}: {' '.join(str(error).split())[:200]}") from None
