"""A policy on disk: its weights as safetensors, all else as JSON, and nothing that could run code.

`policy.json` holds the versions of the format, of the environment's observation and of its action, the network's
shape, the layer kinds that the policy was trained on, the SHA-256 checksum of the weights and the training record.
It is written last: if the process is killed between the two files, the checksum does not fit the weights, and
the policy is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from autocompress.errors import InputError, reason_of
from autocompress.files import strict_json, write_atomically
from autocompress.policies.network import HEADS, LabelPolicy
from autocompress.run.names import POLICY, POLICY_WEIGHTS
from autocompress_envs.labeling.observation import KINDS, OBSERVATION_VERSION

FORMAT = 2  # format 1 held log prices for version 0 of the environment
ACTION_VERSION = 2  # the position of a label on the layer's menu; version 1 was two log prices
DEFAULT = "default"  # name of the policy that is shipped with the package
MOST_BYTES = 16 * 2**20  # largest size of either file
MOST_MEMBERS, MOST_WIDTH = 64, 512

_SHIPPED = Path(__file__).parent / DEFAULT
_VERSIONS = {"format": FORMAT, "observation_version": OBSERVATION_VERSION, "action_version": ACTION_VERSION}
_FIELDS = {
    "members": (int, "a whole number"),
    "width": (int, "a whole number"),
    "kinds": (list, "a list"),
    "sha256": (str, "text"),
    "record": (dict, "a mapping"),
}
SHOWN = 80  # characters of a wrong value that an error message repeats
_ANEW = "train it anew with `autocompress train-policy`"


@dataclass(frozen=True)
class SavedPolicy:
    """A policy that was read from disk.

    Attributes:
        policy: the policy, in eval mode.
        record: record of its training as JSON data; `kinds` lists the layer kinds that it was trained on.
        name: `default` for the shipped policy, else the name of its folder.
    """

    policy: LabelPolicy
    record: Mapping[str, Any]
    name: str


def save_policy(folder: Path, policy: LabelPolicy, record: Mapping[str, Any]) -> None:
    """Write a policy into `folder`, and replace one that is already there.

    Args:
        folder: folder of the policy; created if it does not exist.
        policy: policy of at most `MOST_MEMBERS` members and `MOST_WIDTH` units, in files of at most
            `MOST_BYTES`.
        record: record of the training as JSON data; `kinds` lists the layer kinds that were trained on, all
            else is free.

    Raises:
        InputError: the policy is too large or not finite, or the record is no JSON data or has no valid
            `kinds`.
    """
    members = len(policy.members)
    _check_shape(members, policy.width)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    check_numbers(state)
    _check_kinds(record.get("kinds"))
    weights = save(state)
    content = {
        **_VERSIONS,
        "members": members,
        "width": policy.width,
        "kinds": record["kinds"],
        "sha256": hashlib.sha256(weights).hexdigest(),
        "record": {name: value for name, value in record.items() if name != "kinds"},
    }
    text = _json_bytes(content)
    for part in (weights, text):
        check_size(len(part))
    if folder.exists() and not folder.is_dir():
        raise InputError(f"`folder` must be a folder, got {folder}, which is a file.")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / POLICY_WEIGHTS, weights)
    write_atomically(folder / POLICY, text)


def load_policy(where: str | Path) -> SavedPolicy:
    """Read the policy that `save_policy` wrote, with the same weights to the bit.

    Args:
        where: `default` for the shipped policy, else the policy's folder or one of its two files. (A folder
            with the name default is `./default`.)

    Raises:
        InputError: there is no policy, it is damaged, too large or of another version, or the files are
            something else.
    """
    weights_file, record_file = policy_files(where)
    with blaming(record_file):
        content = _content(read_bounded(record_file))
    with blaming(weights_file):
        raw = read_bounded(weights_file)
        if hashlib.sha256(raw).hexdigest() != content["sha256"]:
            raise InputError(
                f"The weights must have the checksum in {POLICY}, got others: damaged, or a kill came between the two "
                f"files; {_ANEW}."
            )
        policy = _policy(content, raw)
    name = DEFAULT if where == DEFAULT else record_file.parent.resolve().name
    return SavedPolicy(policy, {**content["record"], "kinds": content["kinds"]}, name)


def policy_files(where: str | Path) -> tuple[Path, Path]:
    """Paths of a policy's two existing files: `policy.safetensors` and `policy.json`, in this order.

    Args:
        where: `default`, the policy's folder or one of its two files, as for `load_policy`.

    Raises:
        InputError: one of the files does not exist.
    """
    if where == DEFAULT and not _SHIPPED.is_dir():
        raise InputError(
            f"`policy` must be a folder, got {DEFAULT}, which this installation lacks; "
            "train one with `autocompress train-policy`."
        )
    path = _SHIPPED if where == DEFAULT else Path(where)
    if path.suffix.lower() == ".zip":
        raise InputError(
            f"`policy` must be a folder with {POLICY_WEIGHTS} and {POLICY}, got {path}; write an agent of "
            "Stable-Baselines3 as such a folder with `save_policy` (see docs/policies.md)."
        )
    if not path.exists():
        raise InputError(f"`policy` must be {DEFAULT} or an existing folder or file, got {path}.")
    if path.is_file() and path.name not in (POLICY_WEIGHTS, POLICY):
        raise InputError(f"`policy` must be a folder, its {POLICY_WEIGHTS} or its {POLICY}, got {path}.")
    folder = path.parent if path.is_file() else path
    for name in (POLICY_WEIGHTS, POLICY):
        if not (folder / name).is_file():
            raise InputError(
                f"`policy` must be a folder with {POLICY_WEIGHTS} and {POLICY}, got {folder} without {name}."
            )
    return folder / POLICY_WEIGHTS, folder / POLICY


@contextmanager
def blaming(file: Path) -> Iterator[None]:
    """Put the name of `file` before the message of every InputError that is raised inside."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def read_bounded(file: Path) -> bytes:
    """The content of a file of at most `MOST_BYTES`; its size is checked before it is read.

    Raises:
        InputError: the file is larger, or can't be read.
    """
    try:
        check_size(file.stat().st_size)
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"The file must be readable, got: {error.strerror}.") from error


def _content(raw: bytes) -> dict[str, Any]:
    content = _parsed(raw)
    if not isinstance(content, dict):
        raise InputError(f"The file must hold a mapping, got {_shown(content)}.")
    if "format" not in content:
        raise InputError(f"The file must be a policy of format {FORMAT}, got another file, such as a run's own agent.")
    for name, ours in _VERSIONS.items():
        if type(content.get(name)) is not int or content[name] != ours:
            raise InputError(
                f"`{name}` must be {ours}, got {_shown_field(content, name)}; {_ANEW}, "
                "or use the autocompress that made it."
            )
    for name, (kind, what) in _FIELDS.items():
        if type(content.get(name)) is not kind:
            raise InputError(f"`{name}` must be {what}, got {_shown_field(content, name)}.")
    _check_shape(content["members"], content["width"])
    _check_kinds(content["kinds"])
    return content


def _parsed(raw: bytes) -> Any:
    try:
        return strict_json(raw, _finite)
    except ValueError as error:
        raise InputError(f"The file must be JSON, got: {error}.") from error


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is no finite number")
    return float(text)


def _shown_field(content: Mapping[str, Any], name: str) -> str:
    return _shown(content[name]) if name in content else "nothing"


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def _policy(content: Mapping[str, Any], raw: bytes) -> LabelPolicy:
    try:
        found = dict(safetensors.deserialize(raw))
    except SafetensorError as error:
        raise InputError(f"The file must be a safetensors file, got: {reason_of(error)}.") from error
    with torch.device("meta"):  # shapes are compared before anything as large as they say is made
        policy = LabelPolicy(content["members"], content["width"])
    expected = policy.state_dict()
    _check_tensors(expected, found)
    state = {
        name: torch.frombuffer(bytearray(found[name]["data"]), dtype=torch.float32).reshape(tensor.shape).clone()
        for name, tensor in expected.items()
    }
    check_numbers(state)
    policy.load_state_dict(state, assign=True)
    return policy.eval()


def _check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Mapping[str, Any]]) -> None:
    for name in sorted(expected.keys() ^ found.keys()):
        kind = "without" if name in expected else "with"
        raise InputError(f"The weights must be what {POLICY} says, got them {kind} {name}.")
    for name, tensor in expected.items():
        wanted, got = f"F32 {list(tensor.shape)}", f"{found[name]['dtype']} {list(found[name]['shape'])}"
        if got != wanted:
            raise InputError(f"The tensor {name} must be {wanted}, got {got}.")


def check_numbers(state: Mapping[str, Tensor]) -> None:
    """Check that all numbers of a state dict are finite and that its standard deviations are above 0.

    Raises:
        InputError: a number breaks that rule.
    """
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"The tensor {name} must be finite, got NaN or infinity.")
    for name in sorted(name for name in state if name.startswith("deviation_")):
        least = float(state[name].min())
        if least <= 0.0:
            raise InputError(f"The tensor {name} must be above 0, got {least:g}.")


def _check_shape(members: int, width: int) -> None:
    for name, value, most in (("members", members, MOST_MEMBERS), ("width", width, MOST_WIDTH)):
        if not 1 <= value <= most:
            raise InputError(f"`{name}` must be from 1 to {most}, got {_shown(value)}.")
    if width % HEADS:
        raise InputError(f"`width` must be a multiple of {HEADS}, got {width}.")


def _check_kinds(kinds: Any) -> None:
    if not isinstance(kinds, list) or not kinds or not all(kind in KINDS for kind in kinds):
        got = "nothing" if kinds is None else repr(kinds)[:SHOWN]
        raise InputError(f"`kinds` must be a list of some of {', '.join(KINDS)}, got {got}.")


def check_size(size: int) -> None:
    """Check the size of a policy's file.

    Raises:
        InputError: `size` is more than `MOST_BYTES`.
    """
    if size > MOST_BYTES:
        raise InputError(f"A policy's file must have at most {MOST_BYTES:,} bytes, got {size:,}.")


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"`record` must be JSON data, got: {error}.") from error
