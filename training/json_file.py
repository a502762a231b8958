"""A file with one JSON object, such as config.json of a model or environment.json of a run."""

import json
from pathlib import Path
from typing import Any

from data_tools.errors import RunError


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object; an empty one where there is no such file. Raises RunError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RunError(f"{path}: damaged: {error}; expected a JSON object") from None
    if not isinstance(value, dict):
        raise RunError(f"{path}: damaged: got {type(value).__name__}; expected a JSON object")
    return value
