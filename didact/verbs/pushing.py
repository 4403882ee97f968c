"""`didact push`: upload a saved model to the hub, or to a server with its API, through huggingface_hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from didact import files, untrusted
from didact.models import places
from didact.types import UserError
from didact.verbs import card, given

REPO = re.compile(r"[\w.-]+/[\w.-]+")
OURS = (".didact*", "**/.didact*")  # of no use to others


def push(folder: str, to: str, private: bool = False, dry_run: bool = False) -> dict[str, Any]:
    """Upload a model folder to the repository `owner/name`, created if missing; `dry_run` sends nothing.

    The address and the token are huggingface_hub's own (HF_ENDPOINT; HF_TOKEN or `hf auth login`).

    Raises:
        UserError: no model, a damaged one, no token, or the hub cannot be reached or refuses.
    """
    place = Path(given.place(folder))
    if not REPO.fullmatch(to):
        raise UserError(f"--to {to}: owner/name is expected")
    if not any((place / name).exists() for name in ("config.json", "adapter_config.json", "didact.json")):
        raise UserError(f"{folder}: not a model folder, nor the --out folder of a run that saved one")
    if damage := files.damage(place):
        raise UserError(f"{place}: damaged: {damage}; save it again")
    names = sorted(str(p.relative_to(place)) for p in place.rglob("*") if p.is_file() and not p.name.startswith("."))
    info: dict[str, Any] = {"to": to, "files": {name: (place / name).stat().st_size for name in names}, "warnings": []}
    if card.NAME not in names:
        info["warnings"].append("no model card (README.md): didact run and compare write one beside every model")
    base = places.adapter_config(place).get("base_model_name_or_path") or ""
    if base and Path(base).exists():
        info["warnings"].append(
            f"an adapter on the folder {base}, which others do not have: didact merge {folder} first"
        )
    if dry_run:
        return info
    return info | {"url": _upload(place, to, private)}


def _upload(place: Path, to: str, private: bool) -> str:
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set: nothing is sent; unset it, or look with --dry-run")
    token = get_token()
    if not token:
        raise UserError("no token: set HF_TOKEN, or run `hf auth login`")
    untrusted.keep_secret(token, "HF_TOKEN")
    api = HfApi(token=token)
    try:
        url = api.create_repo(to, private=private, exist_ok=True)
        api.upload_folder(repo_id=to, folder_path=place, ignore_patterns=list(OURS), commit_message="didact push")
    except HfHubHTTPError as error:
        reason = error.server_message or str(error).splitlines()[0]
        raise UserError(f"{api.endpoint} refuses {to}: {untrusted.masked(reason)}") from None
    except Exception as error:  # from the network, the client, or the server's reply
        reason = next(iter(untrusted.masked(str(error)).splitlines()), "")
        raise UserError(f"{to} could not be sent to {api.endpoint}: {type(error).__name__}: {reason}") from None
    return str(url)
