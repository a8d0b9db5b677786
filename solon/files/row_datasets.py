"""Rows of Hugging Face datasets: saved in a folder, or on the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from solon.errors import InputError
from solon.files.data_config import ReadConfig

ANSWER_S = 10.0
"""Seconds after which the hub counts as unreachable."""


def saved_rows(path: Path, what: str, split: str) -> Iterator[tuple[int, Any]]:
    """Rows of a dataset written by `save_to_disk`; `split` of a dictionary of datasets."""
    from datasets import Dataset, load_from_disk

    place = f"{what} folder {path}"
    try:
        loaded = load_from_disk(str(path))
        if not isinstance(loaded, Dataset):
            loaded = _of_split(loaded, split, place)
        # The file is memory-mapped unchecked: wrong offsets would be read beyond its end.
        loaded.data.table.validate(full=True)
    except InputError:
        raise
    except Exception as error:  # the library raises anything for malformed JSON
        said = str(error) or type(error).__name__
        raise InputError(f"{place} is not a saved dataset: {said}; or it is damaged") from None
    return _checked(loaded, place)


def hub_rows(name: str, what: str, read: ReadConfig) -> Iterator[tuple[int, Any]]:
    """Rows of a dataset of the hub, from this machine's cache if possible."""
    from datasets import Dataset, disable_progress_bars, load_dataset

    place = f"{what} dataset {name}"
    disable_progress_bars()
    try:
        with _at_once(name):
            loaded = load_dataset(name, read.subset or None, split=read.split or None)
    except Exception as error:  # network, access, unknown split or subset: the library has no common class
        said = str(error) or type(error).__name__
        raise InputError(
            f"{place} is not a local path and cannot be loaded from the hub: {said}; check the name, data.subset, "
            "data.split, the network and HF_TOKEN"
        ) from None
    if not isinstance(loaded, Dataset):
        loaded = _of_split(loaded, read.split, place)
    return _checked(loaded, place)


@contextmanager
def _at_once(name: str) -> Iterator[None]:
    """Skips the library's retries of half a minute if there is no network: then only its cache is used.

    Raises the hub's error for a name that does not exist or is not visible to this account.
    """
    import datasets.config
    import huggingface_hub.constants
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    was = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if not any(was):
        try:
            HfApi().dataset_info(name, timeout=ANSWER_S)
        except (HfHubHTTPError, OfflineModeIsEnabled):
            raise
        except Exception:  # from any of the connection libraries
            huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = was


def _of_split(splits: Any, split: str, place: str) -> Any:
    names = [str(name) for name in splits]
    if not split and len(names) == 1:
        split = names[0]
    if split not in names:
        asked = f"has no split {split!r}, only" if split else "holds the splits"
        raise InputError(f"{place} {asked} {', '.join(names)}; name one with data.split")
    return splits[split]


def _checked(dataset: Any, place: str) -> Iterator[tuple[int, Any]]:
    rows = iter(dataset)
    for number in range(1, len(dataset) + 1):
        try:
            row = next(rows)
        except Exception as error:  # features that do not match the data only fail when a row is read
            raise InputError(f"{place}: row {number} cannot be read ({error})") from None
        yield number, row
