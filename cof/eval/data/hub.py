"""Data sets by their address on the Hugging Face hub: `hf://owner/name[@revision][/path]`."""

from __future__ import annotations

import re
from pathlib import Path

from cof.errors import CofError

SCHEME = "hf://"

_ADDRESS = re.compile(
    rf"{SCHEME}(?:datasets/)?(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?:/(?P<path>.+?))?/?"
)


def local(source: str) -> Path:
    """A path as it is; an address of the hub as the path of its files, which are downloaded once.

    Behind the data set's name the address may name a folder or file of it, or the split of one
    that lies there in several parquet files: `hf://owner/name/data/val` for
    `data/val-00000-of-00002.parquet` and its like. Only that is downloaded.

    Raises:
        CofError: no address of that form, no such data set, or the hub cannot be reached and the
            files are not in its cache.
    """
    if not source.startswith(SCHEME):
        return Path(source)
    match = _ADDRESS.fullmatch(source)
    if match is None:
        raise CofError(
            f"{source!r} is no data set's address: write {SCHEME}owner/name, {SCHEME}owner/name/"
            f"folder or {SCHEME}owner/name@revision/folder."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    within = match["path"]
    try:
        root = snapshot_download(
            match["id"],
            repo_type="dataset",
            revision=match["revision"],
            allow_patterns=[within, f"{within}/*", f"{within}-*"] if within else None,
        )
    except GatedRepoError as error:
        raise CofError(
            f"{source} asks for consent: accept its terms on its page of the hub, then log in with "
            "`hf auth login`."
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise CofError(f"The hub has no data set {source}, or it is private.") from error
    except LocalEntryNotFoundError as error:
        raise CofError(
            f"{source} is not in this machine's cache and the hub cannot be reached: connect, or "
            "give the path of a copy of the data."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CofError(f"{source} could not be downloaded: {reason[0].rstrip('.')}.") from error
    return Path(root) / within if within else Path(root)
