"""Models of the hub, fetched whole once."""

from __future__ import annotations

from solon.errors import InputError
from solon.models.digest import local_directory

WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
"""Files of a model: weights, configuration, tokenizer. No pickles and no code."""


def model_directory(name: str) -> str | None:
    """The folder of a directory or hub name, which is fetched where it is not on this machine; None: it is neither.
    Raises InputError when it cannot be fetched."""
    found = local_directory(name)
    if found is not None or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return str(found) if found is not None else None
    try:
        from huggingface_hub import snapshot_download

        return str(snapshot_download(name, allow_patterns=WANTED))
    except Exception as error:  # of the network, of the hub, or that there is no such model
        raise InputError(
            f"the model {name!r} is not on this machine and cannot be fetched ({type(error).__name__}), expected a "
            "directory or a name of the hub; check the name and the network, or download it and give its directory"
        ) from None
