"""The structure of a mergekit configuration: its method, models, slices and settings, checked as far as files go.

Every fault is collected with its line, so that all can be told at once. Knows no tensors and makes no recipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from evomerge.errors import ConfigError, Fault
from evomerge.recipe.mergekit_methods import METHODS, PASSTHROUGH, Method
from evomerge.recipe.mergekit_settings import Settings, faults_in
from evomerge.recipe.mergekit_slices import Slice, Source, is_range
from evomerge.recipe.operators import OPERATORS
from evomerge.recipe.recipe import OutputDtype
from evomerge.recipe.schema import Operator
from evomerge.yaml_lines import Document, KeyPath

__all__ = ["Structure", "read_structure"]

Scope = Literal["file", "slice", "source"]
"""Where a `parameters` mapping stands."""

_KEYS = ("merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype")
_TOKENIZER_KEYS = ("tokenizer_source", "tokenizer", "chat_template")
_IDLE = "int8_mask"
"""Changes the type of a temporary in mergekit, and no result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Structure:
    """A configuration without faults of its own.

    Attributes:
        base: the model named as base, if one is.
        slices: in order of depth; of one model each for `passthrough`, else without gaps and all of the same models.
        settings: the file's own parameters.
        dtype: of the merged weights; None if the file leaves it open.
        tokenizer: the model whose tokenizer the merged model takes, as written; None if the file leaves it open.
    """

    document: Document
    method: Method
    base: str | None
    slices: tuple[Slice, ...]
    settings: Settings
    dtype: OutputDtype | None
    tokenizer: str | None

    @property
    def sources(self) -> tuple[str, ...]:
        """The models that are merged, as written; without the base where the operator adds task vectors to it."""
        apart = OPERATORS[self.method.operator].needs_base
        models = dict.fromkeys(source.model for part in self.slices for source in part.sources)
        return tuple(model for model in models if not (apart and model == self.base))


def read_structure(document: Document) -> Structure:
    """Check and read a document.

    Raises:
        ConfigError: everything that is wrong, or that a recipe cannot express, without a look at models.
    """
    if not isinstance(document.data, dict):
        raise ConfigError(document.source, [document.fault((), "expected a mapping of keys and values")])
    reader = _Reader(document)
    structure = reader.read(document.data)
    if structure is None or reader.faults:
        raise ConfigError(document.source, reader.faults)
    return structure


class _Reader:
    """Walks a document once; what is wrong goes to `faults`, and reading goes on."""

    def __init__(self, document: Document) -> None:
        self.faults: list[Fault] = []
        self._document = document
        self._method: Method | None = None
        self._base: str | None = None

    def read(self, data: dict[str, Any]) -> Structure | None:
        self._keys(data, (), (*_KEYS, *_TOKENIZER_KEYS))
        self._method = self._read_method(data)
        base = None if data.get("base_model") is None else self._full_model(data["base_model"], ("base_model",))
        self._base = base
        slices = self._slices(data, base)
        settings = self._settings(data, (), "file")
        models = [*filter(None, [base]), *(source.model for part in slices for source in part.sources)]
        tokenizer = self._tokenizer(data, tuple(dict.fromkeys(models)))
        dtype = self._dtype(data)
        if self._method is None or not slices:
            return None
        structure = Structure(
            document=self._document,
            method=self._method,
            base=base,
            slices=slices,
            settings=settings,
            dtype=dtype,
            tokenizer=tokenizer,
        )
        self._check_models(structure, OPERATORS[self._method.operator])
        return structure

    @property
    def _routes(self) -> bool:
        return self._method is PASSTHROUGH

    def _fault(self, path: KeyPath, message: str) -> None:
        self.faults.append(self._document.fault(path, message))

    def _keys(self, mapping: Mapping[str, Any], path: KeyPath, known: tuple[str, ...]) -> None:
        for key in mapping:
            if key not in known:
                self._fault((*path, key), f"cannot be expressed here; expected one of {', '.join(known)}")

    def _read_method(self, data: Mapping[str, Any]) -> Method | None:
        name = data.get("merge_method")
        if name == PASSTHROUGH.name:
            return PASSTHROUGH
        if isinstance(name, str) and name in METHODS:
            return METHODS[name] if data.get("base_model") is None else METHODS[name].on_task_vectors
        self._fault(("merge_method",), f"expected one of {', '.join([*METHODS, PASSTHROUGH.name])}; got {name!r}")
        return None

    def _full_model(self, name: Any, path: KeyPath) -> str:
        if not isinstance(name, str) or not name:
            self._fault(path, f"expected the path of a model; got {name!r}")
            return ""
        if "@" in name:
            self._fault(path, "'@' names a revision; download that model first and name its folder")
        if "+" in name:
            self._fault(path, "'+' names an adapter; expected a full model here")
        return name

    def _model(self, name: Any, path: KeyPath) -> str:
        """A model that is merged: a path, or `BASE+ADAPTER`, the base being that of the merge or of the first model."""
        if not isinstance(name, str) or "+" not in name:
            model = self._full_model(name, path)
            self._base = self._base or model
            return model
        on, adapter = name.split("+", 1)
        self._full_model(adapter, path)
        self._base = self._base or self._full_model(on, path)
        if on != self._base:
            advice = "merge it into that model with PEFT (merge_and_unload) and name the folder of the result"
            self._fault(path, f"expected an adapter on the base of this merge, {self._base!r}; got {name!r}; {advice}")
        return name

    def _slices(self, data: Mapping[str, Any], base: str | None) -> tuple[Slice, ...]:
        if ("models" in data) == ("slices" in data):
            self._fault((), "expected either 'models' or 'slices'")
            return ()
        if "models" in data:
            sources = self._sources(data["models"], ("models",), ("model", "parameters"))
            if self._routes and len(sources) > 1:
                self._fault(("models",), f"passthrough takes one model, or slices; got {len(sources)}")
            elif base is not None and all(source.model != base for source in sources) and not self._routes:
                sources += (Source(model=base, settings=Settings(path=("base_model",), values={})),)
            return (Slice(start=0, stop=None, sources=sources, settings=Settings(path=("models",), values={})),)
        slices, start = [], 0
        for index, entry in enumerate(self._list(data["slices"], ("slices",))):
            read = self._slice(entry, ("slices", index), start)
            slices.append(read)
            start = read.stop or start
        if not self._routes and len({tuple(source.model for source in read.sources) for read in slices}) > 1:
            self._fault(("slices",), "expected the same models in the same order in every slice")
        return tuple(slices)

    def _slice(self, entry: dict[str, Any], path: KeyPath, start: int) -> Slice:
        self._keys(entry, path, ("sources", "parameters"))
        here = (*path, "sources")
        sources = self._sources(entry.get("sources"), here, ("model", "layer_range", "parameters"))
        ranges: list[Any] = [source.get("layer_range") for source in entry["sources"]] if sources else []
        start, stop = self._own_layers(ranges, here) if self._routes else self._common_layers(ranges, here, start)
        return Slice(start=start, stop=stop, sources=sources, settings=self._settings(entry, path, "slice"))

    def _own_layers(self, ranges: Sequence[Any], path: KeyPath) -> tuple[int, int]:
        """What a slice takes of its one model, which may be nothing."""
        if len(ranges) == 1 and is_range(ranges[0]):
            return ranges[0][0], ranges[0][1]
        self._fault(path, f"passthrough takes one model a slice, with layer_range: [START, END]; got {ranges!r:.60}")
        return 0, 0

    def _common_layers(self, ranges: Sequence[Any], path: KeyPath, start: int) -> tuple[int, int]:
        """What a slice takes of all of its models: the layers behind those of the slice before."""
        stop = max(ranges[0][1], start + 1) if ranges and is_range(ranges[0]) else start + 1
        for index, layers in enumerate(ranges):
            if layers != [start, stop]:
                advice = "layers that are left out, repeated, moved or paired with others cannot be merged here"
                message = f"expected [{start}, END], the same for each source; got {layers!r}; {advice}"
                self._fault((*path, index, "layer_range"), message)
        return start, stop

    def _sources(self, entries: Any, path: KeyPath, keys: tuple[str, ...]) -> tuple[Source, ...]:
        sources: list[Source] = []
        for index, entry in enumerate(self._list(entries, path)):
            here = (*path, index)
            self._keys(entry, here, keys)
            model = self._model(entry.get("model"), (*here, "model"))
            if any(source.model == model for source in sources):
                self._fault((*here, "model"), f"{model!r} stands twice; name each model once")
            sources.append(Source(model=model, settings=self._settings(entry, here, "source")))
        return tuple(sources)

    def _list(self, entries: Any, path: KeyPath) -> Iterator[dict[str, Any]]:
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            self._fault(path, f"expected a list of mappings; got {entries!r:.60}")
            return
        yield from entries

    def _settings(self, holder: Mapping[str, Any], path: KeyPath, scope: Scope) -> Settings:
        values, here = holder.get("parameters") or {}, (*path, "parameters")
        if not isinstance(values, dict):
            self._fault(here, f"expected a mapping of parameters; got {values!r:.60}")
            values = {}
        if self._method is not None:
            for name, setting in values.items():
                for place, message in _setting_faults(self._method, name, setting, (*here, name), scope):
                    self._fault(place, message)
        return Settings(path=here, values=values)

    def _tokenizer(self, data: Mapping[str, Any], models: Sequence[str]) -> str | None:
        """The model whose tokenizer is chosen; the first of the models is the base, or stands for it."""
        own, settings, template = (data.get(key) for key in _TOKENIZER_KEYS)
        if template not in (None, "auto"):
            self._fault(("chat_template",), f"expected 'auto', the chosen model's own; got {template!r:.60}")
        path: KeyPath = ("tokenizer_source",)
        if settings is not None:
            path = ("tokenizer",)
            if own is not None or not isinstance(settings, dict):
                self._fault(path, "expected either 'tokenizer_source' or a mapping with 'source'")
                return None
            self._keys({key: value for key, value in settings.items() if value is not None}, path, ("source",))
            own = settings.get("source", "union")
        if own == "base":
            return models[0] if models else None
        if own is not None and own not in models:
            advice = "a union of vocabularies cannot be expressed here: name the model whose vocabulary to take"
            self._fault(path, f"expected 'base' or one of the models ({', '.join(models)}); got {own!r}; {advice}")
        return own

    def _dtype(self, data: Mapping[str, Any]) -> OutputDtype | None:
        for key in ("dtype", "out_dtype"):
            if data.get(key) not in (None, *get_args(OutputDtype)):
                self._fault((key,), f"expected one of {', '.join(get_args(OutputDtype))}; got {data[key]!r}")
        return cast("OutputDtype | None", data.get("out_dtype") or data.get("dtype"))

    def _check_models(self, structure: Structure, operator: Operator) -> None:
        if operator.needs_base and structure.base is None:
            self._fault(("base_model",), f"{structure.method.name} needs a base model")
            return
        most, sources = operator.max_sources, structure.sources
        least = structure.method.least
        if len(sources) < least or (most is not None and len(sources) > most):
            models = f"at least {least} model" if most is None else f"exactly {most} model"
            wanted = models + "s" * ((most or least) > 1) + " beside the base" * bool(most and operator.needs_base)
            self._fault(("models",), f"{structure.method.name} merges {wanted}; got {', '.join(sources) or 'none'}")


def _setting_faults(
    method: Method, name: str, setting: Any, path: KeyPath, scope: Scope
) -> Iterator[tuple[KeyPath, str]]:
    every = OPERATORS[method.operator].parameters
    parameters = {name: parameter for name, parameter in every.items() if name not in method.absent}
    if name == _IDLE:
        return
    if name in method.switches:
        yield from ((path, message) for message in _switch_faults(method, name, setting, scope))
    elif name not in parameters:
        known = ", ".join([*parameters, *method.switches]) or "no parameters"
        yield path, f"{method.name} takes {known}; mergekit ignores {name!r}, or it cannot be expressed here; remove it"
    elif parameters[name].scope == "shared" and scope == "source":
        yield path, f"{name} is shared by all models; mergekit ignores it here; move it to the file's own parameters"
    else:
        yield from faults_in(setting, path, parameters[name].minimum, parameters[name].maximum)


def _switch_faults(method: Method, name: str, setting: Any, scope: Scope) -> Iterator[str]:
    if scope != "file":
        yield f"{name} can only be set for the whole merge; move it to the file's own parameters"
    elif not isinstance(setting, bool):
        yield f"expected true or false; got {setting!r}"
    elif setting not in method.switches[name].options:
        yield f"{method.name} with {name}: {str(setting).lower()} cannot be expressed here"
