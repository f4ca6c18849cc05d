"""Where the parts of a pretrained generator come from, and under which licence.

A part is a path on this machine, which is read without touching the network, or a name on the Hugging
Face hub. The licence of a name is looked up in `data/licences.yaml`, shown, and, where it asks for
that, has to be accepted before anything is fetched. Use it through `sgdm_utils.generation.pretrained.generator`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import huggingface_hub

from sgdm_utils.generation.pretrained.parts import HUB, Family
from sgdm_utils.workflow import paths
from sgdm_utils.workflow.downloads.catalogue import (
    Entry,
    LicenceError,
    load_catalogue,
    require_licence,
)
from sgdm_utils.workflow.downloads.transfers import DownloadError

_NAME = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?(?:/([\w./-]+))?")


@dataclass(frozen=True)
class _Wanted:
    argument: str
    source: str
    files: tuple[str, ...]
    without: tuple[str, ...] = ()


def locate(
    family: Family,
    model: str | os.PathLike,
    controlnet: str | os.PathLike,
    ip_adapter: str | os.PathLike,
    accept_licence: str | Sequence[str] = (),
    variant: str | None = None,
    catalogue: Mapping[str, Entry] | Path | None = None,
    show: Callable[[str], None] = print,
) -> tuple[Path, Path, Path]:
    """Paths of the three parts on this machine; fetches those that are names on the hub.

    All licences are settled before the first byte is fetched. Names are written `owner/name`, with
    `@revision` behind it to pin one, and for the adapter with the path of its file behind that.

    Returns
    -------
    model, controlnet, ip_adapter : Path, two folders and a file

    Raises
    ------
    FileNotFoundError
        Neither a path on this machine nor the form of a name.
    sgdm_utils.workflow.downloads.catalogue.LicenceError
        A licence must be accepted and was not, or it is not known.
    sgdm_utils.workflow.downloads.transfers.DownloadError
        No network, or no such files; the message holds the manual route.
    """
    weights = f"*.{variant}*.safetensors" if variant else "*.safetensors"
    files = [f"{part}/{p}" for part in family.components for p in ("*.json", "*.txt", weights)]
    others = () if variant else ("*.fp16.*", "*.bf16.*", "*.fp16-*")
    wanted = [
        _Wanted("model", str(model), ("model_index.json", *files), (*others, "*non_ema*")),
        _Wanted(
            "controlnet", str(controlnet), ("config.json", "diffusion_pytorch_model.safetensors")
        ),
        _Wanted("ip_adapter", str(ip_adapter), ()),
    ]
    here = {w.argument: _path(w.source) for w in wanted}
    remote = {w.argument: _parse(w) for w in wanted if here[w.argument] is None}
    entries = _settle_licences({r for r, _, _ in remote.values()}, accept_licence, catalogue, show)
    found = []
    for w in wanted:
        if w.argument not in remote:
            found.append(here[w.argument])
            continue
        repository, revision, file = remote[w.argument]
        w = replace(w, files=(file,)) if file else w
        folder = _fetch(w, repository, revision, entries[repository])
        found.append(folder / file if file else folder)
    return tuple(found)


def _path(source: str) -> Path | None:
    """Find a path from where we are, or from the root of the checkout (notebooks run elsewhere)."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    with contextlib.suppress(RuntimeError):  # a copy of the package without the checkout
        if (paths.project_root() / path).exists():
            return paths.project_root() / path
    return None


def _parse(wanted: _Wanted) -> tuple[str, str | None, str | None]:
    """Repository, revision and file of a name."""
    name = _NAME.fullmatch(wanted.source)
    one_file = wanted.argument == "ip_adapter"
    if not name or bool(name[3]) != one_file:
        form = "owner/name/path/to/file.safetensors" if one_file else "owner/name"
        raise FileNotFoundError(
            f"{wanted.argument}: there is no {wanted.source} on this machine, and a name on the hub "
            f"has the form {form}"
        )
    return name[1], name[2], name[3]


def _settle_licences(
    repositories: set[str],
    accepted: str | Sequence[str],
    catalogue: Mapping[str, Entry] | Path | None,
    show: Callable[[str], None],
) -> dict[str, Entry]:
    """Entries of the catalogue by repository, once every licence among them is accepted."""
    if not repositories:
        return {}
    accepted = [accepted] if isinstance(accepted, str) else list(accepted)
    known = catalogue if isinstance(catalogue, Mapping) else load_catalogue(catalogue)
    by_address = {
        address.rstrip("/"): entry
        for entry in known.values()
        for address in (entry.homepage, *entry.addresses)
    }
    entries, problems = {}, []
    for repository in sorted(repositories):
        entry = by_address.get(HUB + repository)
        if entry is None:
            problems.append(
                f"{repository} is not on this machine, and its licence cannot be shown because it is "
                f"not in data/licences.yaml. Read {HUB}{repository}; then add an entry, or fetch it "
                "by hand and give its path"
            )
            continue
        entries[repository] = entry
        try:
            require_licence(entry, entry.licence if entry.licence in accepted else "")
        except LicenceError as error:
            problems.append(str(error))
    if problems:
        raise LicenceError("\n".join(problems))
    for repository, entry in entries.items():
        note = "accepted" if entry.must_accept else "needs no acceptance"
        limits = "; ".join(entry.must_not)
        show(f"{repository}: licence {entry.licence} ({note}). What must not be done: {limits}")
    return entries


def _fetch(wanted: _Wanted, repository: str, revision: str | None, entry: Entry) -> Path:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    # huggingface_hub reads the variable when it is imported, which may be too early
    offline = offline or huggingface_hub.constants.HF_HUB_OFFLINE
    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(wanted.files),
            ignore_patterns=list(wanted.without) or None,
            local_files_only=offline,
        )
    except Exception as error:  # the hub's client lets errors of several HTTP libraries through
        reason = (str(error).strip().splitlines() or [""])[0]
        there = f"{paths.relative(entry.raw_dir)}/"
        target = there + (wanted.files[0] if wanted.argument == "ip_adapter" else "")
        raise DownloadError(
            f"{wanted.argument}: {repository} could not be fetched and is not in the cache of the "
            f"hub ({type(error).__name__}: {reason}).\n"
            f"By hand:\n"
            f"  1. With a network, open {HUB}{repository} and read its licence ({entry.licence}).\n"
            f"  2. Download {_told(wanted)}.\n"
            f"  3. Put them below {there}, keeping the folders.\n"
            f'  4. Give that path instead of the name: {wanted.argument}="{target}"'
        ) from error
    return Path(folder)


def _told(wanted: _Wanted) -> str:
    """The files as people are told to fetch them."""
    if wanted.argument != "model":
        return " and ".join(wanted.files)
    folders = dict.fromkeys(file.split("/")[0] for file in wanted.files if "/" in file)
    weights = next(file for file in wanted.files if file.endswith("safetensors")).split("/")[1]
    without = f", without {', '.join(wanted.without)}"
    return f"model_index.json and, of {', '.join(folders)}: *.json, *.txt, {weights}{without}"
