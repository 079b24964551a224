"""The file of an attachment: the added weights, and a header that says what is needed to attach them again.

A file may come from anybody: everything it says is checked before anything is built.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from regard.base.errors import UserError, brief
from regard.base.files import opened, whole
from regard.base.schema import Within, fault
from regard.insertion.container import host_keys, is_added, refuse_label
from regard.insertion.record import FIELDS, Record, site_options
from regard.registry.building import check_options
from regard.registry.registration import info


class Header(Record):
    """What a file of `Attached.save` says of itself."""

    label: str
    host: list[str]
    fingerprint: str
    shapes: dict[str, list[Annotated[int, Within(0, 2**53)]]]
    sha256: str


@dataclass(frozen=True)
class Saved:
    """What a file holds.

    Attributes:
        label: under which it was attached.
        host: keys of the host's state dict.
        shapes: of the host's tensors at the sites, see `site_shapes`.
        record: of the attachment.
        tensors: its weights and buffers, by their keys in the host.
    """

    label: str
    host: list[str]
    shapes: dict[str, list[int]]
    record: dict[str, Any]
    tensors: dict[str, Tensor]


def write(
    path: str | os.PathLike[str], model: nn.Module, label: str, record: Mapping[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Write an attachment.

    Raises:
        UserError: the file cannot be written.
    """
    header = {field: record[field] for field in FIELDS}
    header |= {"label": label, "version": version("regard"), "host": host_keys(model)}
    header["fingerprint"] = _fingerprint(header["host"])
    header["shapes"] = site_shapes(model, record)
    header["sha256"] = digest(tensors)
    try:
        with whole(path) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt", "regard": json.dumps(header)})
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def read(path: Path) -> Saved:
    """Read an attachment.

    Raises:
        UserError: the file is missing, broken or not ours.
    """
    text, tensors = _parts(path)
    header = _header(path, text)
    record = {field: header[field] for field in FIELDS}
    refuse_label(header["label"])
    weights = _count(path, record)
    if header["sha256"] != digest(tensors):
        raise UserError(f"{path} is damaged: its weights are not those that were written")
    # before anything is built: a small file asks for no large modules
    if weights > sum(tensor.numel() for tensor in tensors.values()):
        raise UserError(f"{path} does not hold the weights of {record['mechanism']}: it is cut short or was changed")
    return Saved(header["label"], header["host"], header["shapes"], record, tensors)


def _parts(path: Path) -> tuple[str | None, dict[str, Tensor]]:
    """The text of a file's header, and its tensors."""
    opened(path).close()
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("regard"), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}") from error


def _header(path: Path, text: str | None) -> Any:
    try:
        header = json.loads(text or "null")
        wrong = None if text else "it has no header of ours"
    except (ValueError, RecursionError) as error:
        header, wrong = None, f"its header is no JSON: {str(error).partition(chr(10))[0]}"
    if wrong := wrong or fault(header, Header) or _contradiction(header):
        raise UserError(f"{path} holds no attachment of regard ({wrong}): write one with attached.save(path)")
    return header


def _contradiction(header: Any) -> str | None:
    """What of a header cannot be, though every field is of its kind."""
    sites = header["channels"].keys()
    if header["fingerprint"] != _fingerprint(header["host"]):
        return "fingerprint is not that of host"
    if header["layouts"].keys() != sites or not header["beside"].keys() <= sites:
        return "layouts or beside are not those of the sites in channels"
    for name in (*sites, *(beside["convolution"] for beside in header["beside"].values())):
        if not name or is_added(f"{name}."):
            return f"channels has a site {name!r}"
    for site, (layout, prefix, grid) in header["layouts"].items():
        if bool(grid) != (layout == "tokens") or (prefix and layout != "tokens"):
            return f"layouts.{site} has a prefix or a grid that does not belong to {layout}"
    return None


def _count(path: Path, record: Mapping[str, Any]) -> int:
    """How many weights the mechanisms that a file asks for have, by the published formulas."""
    card = info(record["mechanism"])
    if card.place is None:
        raise UserError(f"{path} holds no attachment of regard ({card.name} cannot be attached): write one with save")
    count = 0
    try:
        for site, channels in record["channels"].items():
            options = site_options(record, site)
            check_options(card, options)
            count += card.parameters(channels, **options)
    except Exception as error:  # a formula makes anything of options that no module would take
        raise UserError(f"{path} asks for a {card.name} that cannot be built: {brief(error)}") from error
    return count


def site_shapes(model: nn.Module, record: Mapping[str, Any]) -> dict[str, list[int]]:
    """The shapes of the host's tensors at the sites; where a site has none, beside it."""
    shapes: dict[str, list[int]] = {}
    for site in record["channels"]:
        name, held = site, _own_shapes(model.get_submodule(site))
        if not held:
            beside = record["beside"].get(site)
            name = beside["convolution"] if beside else site.rpartition(".")[0]
            held = _own_shapes(model.get_submodule(name)) if name else {}  # the whole model may have another classifier
        shapes |= {f"{name}.{key}": shape for key, shape in held.items()}
    return shapes


def _own_shapes(module: nn.Module) -> dict[str, list[int]]:
    """Of what a module holds itself, whatever is attached to it."""
    return {key: list(tensor.shape) for key, tensor in module.state_dict().items() if not is_added(key)}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Of all bytes, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _fingerprint(keys: Sequence[str]) -> str:
    """Of a host's set of keys, whatever their order."""
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:16]
