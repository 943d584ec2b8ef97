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
        CofError: no such address or data set, or the hub cannot be reached and its cache lacks it.
    """
    if not source.startswith(SCHEME):
        return Path(source)
    match = _ADDRESS.fullmatch(source)
    if match is None:
        raise CofError(
            f"{source!r} is no data set's address: write {SCHEME}owner/name, {SCHEME}owner/name/"
            f"folder or {SCHEME}owner/name@revision/folder."
        )
    from huggingface_hub import errors, snapshot_download

    within = match["path"]
    try:
        root = snapshot_download(
            match["id"],
            repo_type="dataset",
            revision=match["revision"],
            allow_patterns=[within, f"{within}/*", f"{within}-*"] if within else None,
        )
    except (errors.HFValidationError, OSError) as error:
        unknown = errors.RepositoryNotFoundError, errors.RevisionNotFoundError
        if isinstance(error, errors.GatedRepoError):
            told = "asks for consent: accept its terms on the hub, then log in with `hf auth login`"
        elif isinstance(error, (errors.HFValidationError, *unknown)):
            told = "is no data set of the hub, or a private one"
        elif isinstance(error, errors.LocalEntryNotFoundError):
            told = "is not in this machine's cache, and the hub cannot be reached"
        else:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            told = f"could not be downloaded: {reason.rstrip('.')}"
        raise CofError(f"{source} {told}.") from error
    return Path(root, within or "")
