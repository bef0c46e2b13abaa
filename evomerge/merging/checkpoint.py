"""One model on disk: a Hugging Face folder of safetensors, read lazily through memory maps.

Headers are read by hand, so that a broken file is named before anything runs and nothing here needs torch until a
tensor is asked for. Never unpickles. Knows nothing of other models, roles or merging.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, final

from evomerge.errors import PoolError
from evomerge.merging.small_files import read_config, read_json, unreadable

if TYPE_CHECKING:
    import torch

__all__ = [
    "DTYPES",
    "INDEX_FILE",
    "ITEM_BYTES",
    "SINGLE_FILE",
    "Checkpoint",
    "Model",
    "TensorInfo",
    "read_header",
]

DTYPES: Mapping[str, str] = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Names of dtypes: safetensors' to torch's."""

ITEM_BYTES: Mapping[str, int] = {
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
"""Bytes per element, by torch's name of the dtype."""

_MAX_HEADER = 100_000_000
"""Bytes; the limit that the safetensors format sets itself."""

_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
_WEIGHT_SUFFIXES = _PICKLE_SUFFIXES | {".safetensors", ".gguf", ".h5", ".msgpack", ".onnx"}
_SHARD = re.compile(r"[^/\0]+\.safetensors")

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """One tensor in a file.

    Attributes:
        name: in the file.
        shape: as stored, row-major.
        dtype: torch's name, for example `bfloat16`.
        start, stop: its bytes in the file, `[start, stop)`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    start: int
    stop: int


def read_header(file: Path) -> tuple[TensorInfo, ...]:
    """Every tensor of a safetensors file, in the order of its bytes.

    The format: 8 bytes little-endian header length, the header as JSON, then the tensors' bytes without gaps.

    Raises:
        PoolError: the file is missing, truncated or garbled.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise _broken(file, f"a header of {length} bytes", f"{size} bytes in the whole file")
            text = stream.read(length)
    except OSError as error:
        raise unreadable(file, error) from error
    tensors = _parse_header(file, text)
    end = tensors[-1].stop if tensors else 8 + length
    if end != size:
        raise _broken(file, f"{end} bytes, as its header says", f"{size} bytes")
    return tensors


def _parse_header(file: Path, text: bytes) -> tuple[TensorInfo, ...]:
    origin = 8 + len(text)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        tensors = sorted((_info(file, origin, *entry) for entry in header.items()), key=lambda t: (t.start, t.stop))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise _broken(file, "a safetensors header", f"{type(error).__name__}: {error}") from error
    position = origin
    for tensor in tensors:
        if tensor.start != position:
            raise _broken(file, f"tensor {tensor.name} at byte {position}", f"byte {tensor.start}")
        position = tensor.stop
    return tuple(tensors)


def _info(file: Path, origin: int, name: str, entry: Mapping[str, Any]) -> TensorInfo:
    shape, dtype = tuple(int(n) for n in entry["shape"]), DTYPES.get(entry["dtype"], str(entry["dtype"]))
    start, stop = (origin + int(offset) for offset in entry["data_offsets"])
    if min(shape, default=0) < 0 or stop < start:
        raise ValueError(f"tensor {name} has shape {shape} and bytes {start} to {stop}")
    expected = math.prod(shape) * ITEM_BYTES.get(dtype, 0)
    if dtype in ITEM_BYTES and stop - start != expected:
        raise ValueError(f"tensor {name} ({dtype} {list(shape)}) needs {expected} bytes and has {stop - start}")
    return TensorInfo(name=name, shape=shape, dtype=dtype, file=file, start=start, stop=stop)


def _broken(file: Path, expected: str, got: str) -> PoolError:
    return PoolError(f"{file}: truncated or garbled; expected {expected}; got {got}; download or copy the file again")


class Model(Protocol):
    """Weights by name, in whatever form they are stored."""

    @property
    def folder(self) -> Path:
        """Where the model lives."""

    @property
    def tokenizer_folder(self) -> Path:
        """Where its tokenizer lives."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The content of its `config.json`."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor, by name."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold weights of its own, sorted."""

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor; do not write to it."""


@final
class Checkpoint:
    """One Hugging Face model folder.

    Tensors are memory-mapped: nothing is read until it is touched, and processes share one copy. A checkpoint pickles
    as its headers; the maps are opened anew on the other side.

    Attributes:
        folder, tokenizer_folder: the folder.
        config: the content of `config.json`.
        tensors: every stored tensor, by name, sorted; a name may differ from that in the file (see `renamed`).
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
        self.folder = self.tokenizer_folder = folder
        self.config = config
        self.tensors = tensors
        self._maps: dict[Path, Any] = {}
        self._tensors: dict[str, torch.Tensor] = {}

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the headers of a model.

        Raises:
            PoolError: a file is missing, truncated or garbled, or the weights are pickled.
        """
        if not folder.is_dir():
            found = "a file" if folder.exists() else "nothing"
            raise PoolError(f"{folder}: expected a folder with a model; got {found}; check the path")
        config = read_config(folder / "config.json")
        tensors: dict[str, TensorInfo] = {}
        for tensor in (tensor for file in _shards(folder) for tensor in read_header(file)):
            if tensor.name in tensors:
                files = f"{tensors[tensor.name].file.name} and {tensor.file.name}"
                raise PoolError(
                    f"{folder}: expected tensor {tensor.name} once; got it in {files}; copy the model again"
                )
            tensors[tensor.name] = tensor
        if not tensors:
            raise PoolError(f"{folder}: expected weights; got files without any tensor; download or copy it again")
        if (folder / INDEX_FILE).exists():
            _check_index(folder / INDEX_FILE, tensors)
        return cls(folder, config, dict(sorted(tensors.items())))

    def renamed(self, names: Mapping[str, str]) -> Checkpoint:
        """The same model with other names for its tensors: new by old, one for each."""
        return Checkpoint(self.folder, self.config, {names[name]: tensor for name, tensor in self.tensors.items()})

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the weights, sorted."""
        return tuple(sorted({tensor.file for tensor in self.tensors.values()}))

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, memory-mapped, in its stored dtype; do not write to it.

        Raises:
            KeyError: no such tensor.
            PoolError: its file cannot be read any more.
        """
        if name not in self._tensors:  # making a view takes 20 microseconds
            import torch

            info = self.tensors[name]
            with torch.inference_mode(False):  # so that whoever asks first decides nothing for the others
                self._tensors[name] = self._map(info.file).get_tensor(info.name)
        return self._tensors[name]

    def _map(self, file: Path) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            if file not in self._maps:
                self._maps[file] = safe_open(file, framework="pt")
        except OSError as error:
            raise unreadable(file, error) from error
        except SafetensorError as error:
            raise PoolError(f"{file}: changed since it was opened ({error}); start again") from error
        return self._maps[file]

    def __reduce__(self) -> tuple[type[Checkpoint], tuple[Path, Mapping[str, Any], Mapping[str, TensorInfo]]]:
        return Checkpoint, (self.folder, self.config, self.tensors)


def _shards(folder: Path) -> list[Path]:
    """The weight files of a folder: what the index names, else the single file."""
    if (folder / INDEX_FILE).exists():
        return [folder / name for name in sorted(set(_weight_map(folder / INDEX_FILE).values()))]
    if (folder / SINGLE_FILE).exists() or (folder / SINGLE_FILE).is_symlink():
        return [folder / SINGLE_FILE]
    found = sorted(file.name for file in folder.iterdir() if file.suffix in _WEIGHT_SUFFIXES)
    pickled = "pickled weights are never read: " * any(Path(name).suffix in _PICKLE_SUFFIXES for name in found)
    raise PoolError(
        f"{folder}: expected {SINGLE_FILE} or {INDEX_FILE}; got {found or 'no weights'}; {pickled}save the model again "
        "with save_pretrained, as safetensors"
    )


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    files = weight_map.values() if isinstance(weight_map, dict) else [weight_map]
    if strange := [file for file in files if not (isinstance(file, str) and _SHARD.fullmatch(file))]:
        raise PoolError(
            f"{index}: expected 'weight_map', tensor names to safetensors files of this folder; got "
            f"{strange[0]!r:.60}; download or copy the file again"
        )
    return cast("dict[str, str]", weight_map)


def _check_index(index: Path, tensors: Mapping[str, TensorInfo]) -> None:
    for name, file in _weight_map(index).items():
        if name not in tensors or tensors[name].file.name != file:
            held = tensors[name].file.name if name in tensors else "no file"
            raise PoolError(f"{index}: expected tensor {name} in {file}; got it in {held}; copy the model again")
