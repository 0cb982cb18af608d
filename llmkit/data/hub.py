"""Rows of data sets on the hub, by `datasets`, which keeps what it has fetched."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmkit.data.generated import no_split
from llmkit.data.readers import READERS, Placed
from llmkit.errors import DataError, SetupError
from llmkit.recipe.secrets import redact

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Source


def read_hub(source: Source) -> Placed:
    """Yield the rows of a hub data set, each after its place (`org/rows/train[3]`).

    Raises DataError for a data set that can't be read, SetupError for one that can't be reached.
    """
    split = source.split or "train"
    require_hub(f"the data set {source.path}")
    with _refused(source, split):  # a stream is fetched while it is read, so it may fail at any row
        for index, row in enumerate(_load_hub(source, split)):
            yield f"{source.path}/{split}[{index}]", dict(row)


def _load_hub(source: Source, split: str) -> Iterable[dict[str, Any]]:
    import datasets
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    if source.path in _PACKAGED_DATASETS_MODULES:
        # `datasets` would take it for one of its own readers, and read what lies in the current folder.
        raise DataError(
            f"{source.path!r} is how `datasets` calls a kind of file, and no data set",
            where=source.path,
            remedy="Name a data set by its whole id, ORGANISATION/NAME, and a file by its path.",
        )
    found: Iterable[dict[str, Any]] = datasets.load_dataset(
        source.path, name=source.name, split=split, revision=source.revision, streaming=source.streaming
    )
    return found


def require_hub(what: str) -> None:
    """Raise SetupError if the hub, which is to be asked for `what`, does not answer within HF_HUB_ETAG_TIMEOUT (10 s).

    huggingface_hub itself waits, for each file that it has not cached, up to six times a minute.
    """
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return  # those who load it say so
    try:
        status = get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT).status_code
    except Exception as error:  # noqa: BLE001 - its HTTP client has errors of its own, and they are no OSErrors
        reason = f"{type(error).__name__}: {error}"
    else:
        if status < 500:
            return
        reason = f"it answers with HTTP {status}"
    raise SetupError(
        redact(f"{what} is to be fetched, and the hub ({constants.ENDPOINT}) can't be reached: {reason}"),
        remedy=f"Try again later, or point to a local file or folder. What is in {constants.HF_HUB_CACHE} already is "
        "taken from there with HF_HUB_OFFLINE=1.",
    )


@contextmanager
def _refused(source: Source, split: str) -> Iterator[None]:
    """Turn what `datasets` raises inside into errors that say what to do."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        yield
    except ValueError as exc:
        raise _hub_refusal(source.path, split, str(exc)) from exc
    except DatasetNotFoundError as exc:
        remedy = "Check the id; for a gated or private data set, log in with `hf auth login`."
        raise SetupError(f"not found on the hub: {exc}", where=_wanted(source, split), remedy=remedy) from exc
    except (DatasetsError, RuntimeError) as exc:  # broken files; data sets that need a script to be run
        raise DataError(f"can't be loaded: {exc}", where=source.path) from exc
    except OSError as exc:  # includes ConnectionError and the hub's HTTP errors
        raise _out_of_reach(source, split, exc) from exc


def _hub_refusal(label: str, split: str, reason: str) -> DataError:
    splits = re.search(r"(?:Should be one of|Available splits:) \[(.*?)\]", reason)
    if splits:
        return no_split(label, split, re.findall(r"'(.*?)'", splits[1]))
    return DataError(reason, where=label, remedy="`name` chooses the data set's configuration, `split` its part.")


def _wanted(source: Source, split: str) -> str:
    chosen = [f"split {split}", f"revision {source.revision or 'main'}"]
    if source.name is not None:
        chosen.insert(0, f"name {source.name}")
    return f"{source.path} ({', '.join(chosen)})"


def _out_of_reach(source: Source, split: str, reason: OSError) -> SetupError:
    from datasets.config import HF_DATASETS_CACHE
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    why = "HF_HUB_OFFLINE is set" if offline else f"the hub can't be reached: {reason}"
    online = "unset HF_HUB_OFFLINE" if offline else "go online"
    return SetupError(
        f"neither a local file nor a cached data set, and {why}",
        where=_wanted(source, split),
        remedy=f"Looked for a file of that name, and in {HF_DATASETS_CACHE} and {constants.HF_HUB_CACHE} (set HF_HOME "
        f"to move them).\nEither {online} and run again, or point `path` to a local {', '.join(READERS)} file.",
    )
