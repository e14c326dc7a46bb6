"""Weights from the Hugging Face hub (or a mirror that ``HF_ENDPOINT`` names), through its cache."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from repedge.config import Interpolation, Preprocess
from repedge.errors import UserError
from repedge.hashing import sha256
from repedge.models.registry import ModelSpec, resized_side

SCHEME = "hf://"
FILES = ("model.safetensors", "pytorch_model.bin")
"""What is looked for where no file is named, in this order."""

_NAME = r"[A-Za-z0-9][\w.-]*"
_ADDRESS = re.compile(rf"hf://(?P<repo>{_NAME}/{_NAME})(@(?P<rev>[\w.-]+))?(/(?P<file>[^@]+))?")


@dataclass(frozen=True)
class Address:
    """``hf://ORG/NAME[@REVISION][/FILE]``."""

    repo: str
    revision: str | None = None
    file: str | None = None

    @staticmethod
    def parse(text: str) -> Address:
        """Read an address.

        Raises:
            UserError: It is not of that form.
        """
        m = _ADDRESS.fullmatch(text)
        if m is None or (m["file"] and ".." in m["file"].split("/")):
            raise UserError(f"{text!r} is no hub address; write hf://ORG/NAME, hf://ORG/NAME@REVISION/FILE")
        return Address(m["repo"], m["rev"], m["file"])

    def __str__(self) -> str:
        rev = f"@{self.revision}" if self.revision else ""
        return f"{SCHEME}{self.repo}{rev}" + (f"/{self.file}" if self.file else "")


@dataclass(frozen=True)
class Fetched:
    """A weights file in the local cache.

    Attributes:
        path: Where it lies.
        address: Where it came from.
        commit: The repository's commit.
        config: The repository's config.json; empty if it has none.
    """

    path: Path
    address: Address
    commit: str
    config: dict[str, Any]


def pretrained(row: ModelSpec) -> Address:
    """Where a named model's published weights are.

    Raises:
        UserError: They are not on the hub; the message says where they are.
    """
    if row.hub:
        return Address(row.hub)
    if row.release:
        raise UserError(
            f"{row.name}'s weights are not on the hub; download {row.release} and pass --weights FILE"
        )
    raise UserError(f"no weights were published for {row.name}; pass yours with --weights FILE")


def fetch(address: Address) -> Fetched:
    """Download a weights file and its repository's config.json, or find them in the cache.

    Raises:
        UserError: Offline and not cached, no such repository, revision or file, gated or private,
            damaged on the way. The message names ``--weights FILE``.
    """
    for name in (address.file,) if address.file else FILES:
        path = _download(address, name)
        if path is not None:
            _check_hash(path, address)
            commit = path.parts[path.parts.index("snapshots") + 1] if "snapshots" in path.parts else ""
            return Fetched(path, address, commit, _config(address, commit))
    wanted = address.file or " or ".join(FILES)
    raise UserError(
        f"{address} has no {wanted}{_listing(address)}; name one as hf://ORG/NAME/FILE or pass --weights FILE"
    )


def _endpoint() -> str | None:
    """Read at every call: huggingface_hub reads it once, when it is imported."""
    return os.environ.get("HF_ENDPOINT") or None


_LOCAL = "or download the file elsewhere and pass --weights FILE"
_HTTP_CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")  # by hub version


def _download(address: Address, name: str) -> Path | None:
    """The file's path in the cache; None where the repository does not have it."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url

    url = hf_hub_url(address.repo, name, revision=address.revision, endpoint=_endpoint())
    options: dict[str, Any] = {"revision": address.revision, "endpoint": _endpoint()}
    try:
        # Asked first, because hf_hub_download retries for 20 s before it says that there is no network.
        get_hf_file_metadata(url)
        path = hf_hub_download(address.repo, name, **options)
    except errors.EntryNotFoundError:
        return None
    except errors.GatedRepoError as error:
        raise UserError(
            f"{address} is gated: accept its terms on the hub and run `hf auth login`, {_LOCAL}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{_no_repository(address)}, {_LOCAL}") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{address.repo} has no revision {address.revision!r}, {_LOCAL}") from error
    except Exception as error:
        foreign = type(error).__module__.split(".")[0] in _HTTP_CLIENTS
        if not (foreign or isinstance(error, (OSError, ValueError, RuntimeError))):
            raise
        try:
            path = hf_hub_download(address.repo, name, local_files_only=True, **options)
        except errors.LocalEntryNotFoundError:
            raise UserError(f"{_failure(address, error)}, {_LOCAL}") from error
    return Path(path)


def _no_repository(address: Address) -> str:
    return f"the hub has no repository {address.repo} (or it is private: run `hf auth login`)"


def _failure(address: Address, error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):  # what the hub tells strangers of private and of missing repositories
        return _no_repository(address)
    if status:
        return f"the hub answered HTTP {status} for {address}; try later"
    if isinstance(error, ConnectionError) or "Connect" in type(error).__name__ + str(error)[:80]:
        return f"{address} cannot be reached and is not in the cache; go online"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"fetching {address} failed ({reason[:160]}); try again"


def _check_hash(path: Path, address: Address) -> None:
    """The cache names large files by their sha256; huggingface_hub itself compares only the size."""
    blob = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", blob) and sha256(path) != blob:
        raise UserError(
            f"{address} arrived damaged (its sha256 is not {blob[:12]}...); delete {path} and try again"
        )


def _config(address: Address, commit: str) -> dict[str, Any]:
    pinned = Address(address.repo, commit or address.revision)
    try:
        path = _download(pinned, "config.json")
        found = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (UserError, OSError, ValueError):
        return {}  # the weights are here; without it the model's own preprocessing is used
    return found if isinstance(found, dict) else {}


def _listing(address: Address) -> str:
    from huggingface_hub import HfApi

    try:
        names = HfApi(endpoint=_endpoint()).list_repo_files(address.repo, revision=address.revision)
    except Exception:  # only makes the message better
        return ""
    weights = [n for n in names if n.endswith((".safetensors", ".bin", ".pth", ".pt"))]
    return f" (it has {', '.join(weights[:5])})" if weights else ""


def preprocess_of(config: dict[str, Any], default: Preprocess) -> Preprocess:
    """Preprocessing from timm's ``pretrained_cfg`` (or from a config.json that holds one).

    Args:
        default: What stands where the configuration is silent.

    Raises:
        UserError: The configuration makes no sense.
    """
    cfg = config.get("pretrained_cfg", config)
    if not isinstance(cfg, dict):
        return default
    try:
        changes: dict[str, Any] = {}
        if "input_size" in cfg:
            _, height, width = cfg["input_size"]
            changes["size"] = (int(height), int(width))
        size = changes.get("size", default.size)
        if cfg.get("crop_mode") == "squash" and cfg.get("crop_pct", 1.0) == 1.0:
            changes["resize"] = None
        elif "crop_pct" in cfg:
            changes["resize"] = resized_side(size, float(cfg["crop_pct"]))
        if cfg.get("interpolation") in ("nearest", "bilinear", "bicubic"):
            changes["interpolation"] = cast(Interpolation, cfg["interpolation"])
        for key in ("mean", "std"):
            if key in cfg:
                changes[key] = tuple(float(v) for v in cfg[key])
        return Preprocess(**{**default.model_dump(), **changes})
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"the model's pretrained_cfg is not usable ({str(error).splitlines()[0]})") from error
