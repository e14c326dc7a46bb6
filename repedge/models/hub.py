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
from repedge.models.files import sha256
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


def _download(address: Address, name: str) -> Path | None:
    """The file's path in the cache; None where the repository does not have it."""
    from huggingface_hub import errors, hf_hub_download

    local = "or download the file elsewhere and pass --weights FILE"
    try:
        path = hf_hub_download(
            address.repo, name, revision=address.revision, endpoint=_endpoint(), library_name="repedge"
        )
    except errors.LocalEntryNotFoundError as error:  # before EntryNotFoundError, its base
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise UserError(
                f"the hub refused {address} ({_status(error.__cause__)}); try later, {local}"
            ) from error
        raise UserError(f"{address} cannot be reached and is not in the cache; go online, {local}") from error
    except errors.EntryNotFoundError:
        return None
    except errors.GatedRepoError as error:
        raise UserError(
            f"{address} is gated: accept its terms on the hub and run `hf auth login`, {local}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"the hub has no repository {address.repo} (or it is private: run `hf auth login`), {local}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{address.repo} has no revision {address.revision!r}, {local}") from error
    except errors.HfHubHTTPError as error:
        raise UserError(f"the hub refused {address} ({_status(error)}); try later, {local}") from error
    except (OSError, ValueError, RuntimeError) as error:  # disk, cut connection, size mismatch, bad name
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"fetching {address} failed ({text[:160]}); try again, {local}") from error
    except Exception as error:
        # The HTTP client's own errors: httpx or requests, by huggingface_hub's version.
        if type(error).__module__.split(".")[0] not in ("httpx", "httpx2", "httpcore", "requests"):
            raise
        raise UserError(f"fetching {address} failed ({error}); go online, {local}") from error
    return Path(path)


def _status(error: Exception) -> str:
    response = getattr(error, "response", None)
    code = getattr(response, "status_code", None)
    return f"HTTP {code}" if code else "no answer"


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
