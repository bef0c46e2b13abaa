"""A server's model against one of transformers in this process. The server is a small stand-in that answers in vLLM's
terms from a transformers model; `test_vllm_server.py` asks vLLM's own."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from evomerge.config import FitnessConfig, FunctionConfig, LossConfig, OpenaiConfig, PoolConfig, TransformersConfig
from evomerge.engines import EvalRunner, TransformersEngine
from evomerge.engines.build import build_engine
from evomerge.errors import DiskError, MergeError, PoolError, RunError, TaskError
from evomerge.merging.configured import configured_pool
from evomerge.merging.pool import ModelPool
from evomerge.outcome import Failed, ItemSet, Job, Scored
from evomerge.recipe import OPERATORS, Field, Recipe, options_of, uniform
from evomerge.runs import RunStore
from evomerge.workers import WorkerSpec
from evomerge.workers.base import run_safely
from evomerge.workers.candidate import MergeWorker

MODULES = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
ITEMS = (0, 3, 8, 17, 39)
KEY = "EVOMERGE_TEST_API_KEY"
FLOAT32 = TransformersConfig(device="cpu", dtype="float32")


class StandIn:
    """vLLM's server in small: a base, adapters by name, and answers one by one."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.models = {"base": self.model()}
        self.loads: list[str] = []
        self.key = ""
        self.ignores_adapters = self.has_no_updates = self.is_no_vllm = False
        self.busy = 0
        self.breaks = self.is_dead = False
        self.answers_left = math.inf
        self.lock = threading.Lock()

    def model(self, *adapter: Path) -> Any:
        pool = ModelPool.open(self.base, {f"a{i}": folder for i, folder in enumerate(adapter)} or {"same": self.base})
        engine = TransformersEngine(pool, FLOAT32)
        engine.load(uniform(("a0",) if adapter else ("base",), layers=pool.layers, dtype="float32"))
        return engine.model

    def answer(self, path: str, body: Any, authorization: str | None) -> tuple[int, Any]:
        if self.key and authorization != f"Bearer {self.key}":
            return 401, {"error": "Unauthorized"}
        self.answers_left -= 1
        if self.busy or self.answers_left < 0:
            self.busy = max(0, self.busy - 1)
            return 503, {"error": {"message": "starting"}}
        if path == "/health":
            return (503 if self.is_dead else 200), ""
        if self.breaks and path == "/v1/completions":
            return 500, {"error": {"message": "Internal Server Error"}}
        if path == "/v1/models":
            return 200, {"data": [{"id": name, "parent": None if name == "base" else "base"} for name in self.models]}
        if path == "/version":
            return 200, {"version": "0.0-standin"}
        if path == "/v1/completions":
            if body["model"] not in self.models:
                return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
            return 200, {"choices": [self.choice(self.models[body["model"]], body)]}
        if self.has_no_updates:
            return 404, {"detail": "Not Found"}
        name = body["lora_name"]
        if path == "/v1/unload_lora_adapter":
            return (200, "gone") if self.models.pop(name, None) else (404, {"error": {"message": "no such adapter"}})
        self.loads.append(name)
        if name in self.models or not Path(body["lora_path"]).is_dir():
            return 400, {"error": {"message": f"cannot load {body['lora_path']}"}}
        self.models[name] = self.models["base"] if self.ignores_adapters else self.model(Path(body["lora_path"]))
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def choice(self, model: Any, body: Any) -> dict[str, Any]:
        if self.is_no_vllm:
            return {"text": "hello"}
        prompt = torch.tensor([body["prompt"]])
        if "prompt_logprobs" in body:
            with torch.inference_mode():
                logs = model(prompt).logits[0].log_softmax(-1)
            found: list[Any] = [None]
            for row, token in zip(logs, body["prompt"][1:], strict=False):
                rank = int((row > row[token]).sum()) + 1
                found.append({str(token): {"logprob": float(row[token]), "rank": rank}})
            return {"prompt_logprobs": found}
        tokens: list[int] = []
        generator = torch.Generator().manual_seed(body["seed"])
        while len(tokens) < body["max_tokens"]:
            with torch.inference_mode():
                logits = model(torch.cat([prompt, torch.tensor([tokens], dtype=torch.long)], 1)).logits[0, -1]
            greedy = not body["temperature"]
            chances = (logits / (body["temperature"] or 1.0)).softmax(-1)
            tokens.append(int(logits.argmax() if greedy else chances.multinomial(1, generator=generator)))
            if tokens[-1] == model.config.eos_token_id or any(s in self.tokenizer.decode(tokens) for s in body["stop"]):
                break
        return {"token_ids": tokens, "logprobs": {"token_logprobs": [-1.0] * len(tokens)}}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, save_adapter_family: Any) -> PoolConfig:
    made: PoolConfig = save_adapter_family(tmp_path_factory.mktemp("adapters"), *MODULES)
    return made


@pytest.fixture
def server(source: PoolConfig) -> Iterator[Any]:
    standin = StandIn(source.base)

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            with standin.lock:
                status, data = standin.answer(self.path, body, self.headers.get("Authorization"))
            payload = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        do_GET = do_POST = handle_one  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    class Patient(ThreadingHTTPServer):
        request_queue_size = 128

    with Patient(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        standin.url = f"http://127.0.0.1:{listening.server_port}"  # type: ignore[attr-defined]
        yield standin
        listening.shutdown()
        thread.join()


def config_of(server: Any, **more: Any) -> OpenaiConfig:
    return OpenaiConfig(kind="openai", url=server.url, dtype="float32", batch_size=4, **more)


def engine_on(server: Any, source: PoolConfig, **more: Any) -> Any:
    return build_engine(configured_pool(source), source, config_of(server, **more))


def task_arithmetic(*weights: float, scale: float = 1.0) -> Recipe:
    return Recipe(
        operator="task_arithmetic",
        options=options_of(OPERATORS["task_arithmetic"], "paper"),
        base="base",
        sources=("one", "two"),
        parameters=(("lambda", Field.constant([scale], 3)), ("weight", Field.constant([*weights], 3))),
        dtype="float32",
    )


RECIPES = {
    "the base": uniform(("base",), layers=3, dtype="float32"),
    "an expert": uniform(("two",), layers=3, dtype="float32"),
    "the average": uniform(("one", "two"), layers=3, dtype="float32"),
    "a sum": task_arithmetic(0.7, -0.4, scale=1.3),
    "nothing": task_arithmetic(0.0, 0.0),
}


def test_every_candidate_is_judged_as_with_transformers(
    server: Any, source: PoolConfig, fitness: FitnessConfig
) -> None:
    engine, other = engine_on(server, source), TransformersEngine(configured_pool(source), FLOAT32)
    runners = [EvalRunner(live, fitness, 3) for live in (engine, other)]
    chosen = ItemSet.of(dict.fromkeys(runners[0].sizes(), ITEMS))
    pairs = [((2, 5, 6), (7,)), ((2, 5, 6), (7, 8, 9)), ((2,), tuple(range(4, 30)))]
    seen = set()
    for name, recipe in RECIPES.items():
        engine.load(recipe)
        other.load(recipe)
        (found, seconds), (expected, _) = (runner.score(chosen) for runner in runners)
        assert found == expected, name
        assert seconds["forward"] > 0
        ours, theirs = (live.backend(chat_template=False).scoring(pairs)() for live in (engine, other))
        assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], abs=1e-3), name
        assert [best for _, best in ours] == [best for _, best in theirs], name
        seen.add(tuple(score for score, _ in ours))
    assert len(seen) == len(RECIPES) - 1  # nothing is the base
    assert (engine.device, engine.dtype) == ("vLLM 0.0-standin", "float32")


def test_adapters_come_and_go(server: Any, source: PoolConfig, tmp_path: Path) -> None:
    engine = engine_on(server, source, folder=tmp_path / "shared")
    for recipe in (RECIPES["a sum"], RECIPES["a sum"], RECIPES["the base"], RECIPES["an expert"]):
        engine.load(recipe)
    assert len(server.models) == 2
    assert len(server.loads) == len(set(server.loads)) == 4  # one of them to check the server
    assert len(list((tmp_path / "shared").glob("*/*"))) == 1
    engine.close()
    assert list(server.models) == ["base"]
    assert not list((tmp_path / "shared").iterdir())


def test_a_folder_that_cannot_be_made(server: Any, source: PoolConfig) -> None:
    with pytest.raises(DiskError, match=r"expected a folder to write adapters in; got .*; correct engine\.folder"):
        engine_on(server, source, folder=source.base / "config.json" / "adapters")


def test_workers_share_a_server(server: Any, source: PoolConfig) -> None:
    pairs = [((2, 5, 6), (7, 8, 9))]
    first, second = (engine_on(server, source) for _ in range(2))
    first.load(RECIPES["an expert"])
    alone = first.backend(chat_template=False).scoring(pairs)()
    second.load(RECIPES["a sum"])
    assert second.backend(chat_template=False).scoring(pairs)() != alone
    assert first.backend(chat_template=False).scoring(pairs)() == alone


def test_sampling_follows_the_seed(server: Any, source: PoolConfig) -> None:
    settings = {"until": ["."], "max_gen_toks": 12, "do_sample": True, "temperature": 2.0}
    write = engine_on(server, source).backend(chat_template=False).writing([("abc", settings)])

    def drawn(seed: int) -> str:
        torch.manual_seed(seed)
        text: str = write()[0].text
        return text

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(6)}) > 1


def test_merges_that_are_no_adapter_fail_alone(server: Any, source: PoolConfig) -> None:
    engine = engine_on(server, source)
    half = Recipe(
        operator="linear",
        options=(("normalize", False),),
        base=None,
        sources=("one", "two"),
        parameters=(("weight", Field.constant([0.5, 0.2], 3)),),
        dtype="float32",
    )
    with pytest.raises(MergeError, match=r"weights that add up to 1, so that the base comes through whole; got 0\.7"):
        engine.load(half)
    engine.load(RECIPES["an expert"])
    assert len(server.models) == 2


def test_pools_that_cannot_be_served_are_refused_by_name(
    server: Any, source: PoolConfig, save_adapter_family: Any, tmp_path: Path
) -> None:
    full = PoolConfig(base=source.base, experts={**source.experts, "whole": source.base.parent / "one"})
    with pytest.raises(PoolError, match=r"plain LoRA adapters:\n  whole: got a full model\nLeave those"):
        engine_on(server, full)
    with pytest.raises(PoolError, match="that add up to 512 at most; got 600"):
        engine_on(server, save_adapter_family(tmp_path, "q_proj", rank=300))


@pytest.mark.parametrize(
    ("flaw", "error", "message"),
    [
        ({"ignores_adapters": True}, MergeError, "they change nothing: the engine leaves them out"),
        ({"has_no_updates": True}, RunError, "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora"),
        ({"is_no_vllm": True}, RunError, "as vLLM gives them; got something else"),
        ({"models": {}}, RunError, "one of the models that it serves; it serves none"),
        ({"key": "let-me-in-please"}, RunError, "to be let in; got 401: Unauthorized; name the environment variable"),
    ],
)
def test_servers_that_will_not_do(
    server: Any, source: PoolConfig, flaw: dict[str, Any], error: type[Exception], message: str
) -> None:
    for name, value in flaw.items():
        setattr(server, name, value)
    with pytest.raises(error, match=message):
        engine_on(server, source)


def test_a_server_with_another_base_is_refused(server: Any, source: PoolConfig) -> None:
    server.base = source.base.parent / "one"
    server.models["base"] = server.model()
    with pytest.raises(MergeError, match="the engine holds another base, computes in another dtype"):
        engine_on(server, source)


def test_a_key_comes_from_the_environment_and_stays_there(
    server: Any, source: PoolConfig, monkeypatch: pytest.MonkeyPatch, make_fitness: Any, tmp_path: Path
) -> None:
    server.key = "let-me-in-please"
    with pytest.raises(RunError, match=f"in the environment variable {KEY}; it is not set"):
        engine_on(server, source, api_key=KEY)
    monkeypatch.setenv(KEY, server.key)
    spec = WorkerSpec(
        pool=source,
        fitness=make_fitness({"task": "rev_exact"}),
        engine=config_of(server, api_key=KEY),
        seed=3,
        log=tmp_path / "logs",
    )
    worker = MergeWorker(spec)
    outcome = worker.run(job())
    assert isinstance(outcome, Scored), outcome
    server.key = "another-key-now"
    with pytest.raises(RunError, match="401"):
        worker.run(job())
    assert all(server.key not in file.read_text() for file in (tmp_path / "logs").iterdir())
    assert "let-me-in-please" not in repr(spec) + worker.info().device


def job() -> Job:
    recipe = RECIPES["a sum"]
    return Job(candidate=1, phase="search", recipe=recipe, items=ItemSet.of({"rev_exact": (1, 2)}))


def test_a_server_that_went_away_ends_the_run_and_no_candidate(
    server: Any, source: PoolConfig, fitness: FitnessConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evomerge.engines.openai_client._PAUSES", (0.01, 0.01))
    worker = MergeWorker(WorkerSpec(pool=source, fitness=fitness, engine=config_of(server), seed=3))
    server.busy = 2
    assert isinstance(run_safely(worker, job()), Scored)
    server.busy = 1000
    with pytest.raises(RunError, match="expected a server that answers; got 503: starting; start it"):
        run_safely(worker, job())
    server.busy = 0
    assert isinstance(run_safely(worker, job()), Scored)


def test_an_error_of_the_server_is_the_candidates_only_while_the_server_is_well(
    server: Any, source: PoolConfig, fitness: FitnessConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evomerge.engines.openai_client._PAUSES", (0.01, 0.01))
    worker = MergeWorker(WorkerSpec(pool=source, fitness=fitness, engine=config_of(server), seed=3))
    server.breaks = True  # as for NaN, which is no JSON
    outcome = run_safely(worker, job())
    assert isinstance(outcome, Failed)
    assert not outcome.retry
    server.is_dead = True
    with pytest.raises(RunError, match="expected a server that answers; got 503"):
        run_safely(worker, job())


def test_a_run_goes_on_at_another_address(
    server: Any, source: PoolConfig, evomerge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evomerge.engines.openai_client._PAUSES", ())
    pool = {"base": str(source.base), "experts": {name: str(path) for name, path in source.experts.items()}}

    def run(url: str, dtype: str = "float32") -> tuple[int, str, str]:
        settings = [
            f"pool={json.dumps(pool)}",
            f"engine={{kind: openai, url: '{url}', dtype: {dtype}}}",
            "executor={kind: serial}",
            "space.knots=1",
            "algorithm={kind: random, population: 4}",
            "budget.evaluations=8",
            "fitness.items={search: 4, confirm: 4}",
            "fitness.confirm.shortlist=1",
        ]
        return evomerge("run", "quickstart", "--out", tmp_path / "run", *(x for s in settings for x in ("--set", s)))  # type: ignore[no-any-return]

    server.answers_left = 80
    code, _, err = run(server.url)
    assert (code, "expected a server that answers; got 503" in err) == (3, True), err
    with RunStore.read(tmp_path / "run") as store:
        assert 0 < len(store.responses("search")) < 8
        assert not list(store.failures())
    server.answers_left = math.inf
    assert run(server.url, dtype="bfloat16")[0] == 2
    code, _, err = run(server.url.replace("127.0.0.1", "localhost"))
    assert code == 0, err
    with RunStore.read(tmp_path / "run") as store:
        assert len(store.responses("search")) == 8
        assert '"device": "vLLM 0.0-standin"' in (store.meta("workers") or "")
        assert not list(store.failures())


def test_a_server_that_was_started_anew(server: Any, source: PoolConfig) -> None:
    engine = engine_on(server, source)
    engine.load(RECIPES["a sum"])
    server.models = {"base": server.models["base"]}
    with pytest.raises(RunError, match=r"no longer knows the candidate .* as if it had been started anew"):
        engine.logprobs([[2, 3]])
    engine.load(RECIPES["a sum"])
    assert engine.logprobs([[2, 3]])


def test_nobody_listens(source: PoolConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.engines.openai_client._PAUSES", ())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = SimpleNamespace(url=f"http://127.0.0.1:{free.getsockname()[1]}")
    with pytest.raises(
        RunError, match=r"expected a server that answers; got ConnectionRefusedError.* the same command"
    ):
        engine_on(address, source)


def test_somebody_listens_and_says_nothing(source: PoolConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = SimpleNamespace(url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(RunError, match=r"an answer within 0\.2 s; got none; raise engine.timeout_seconds"):
            engine_on(address, source, timeout_seconds=0.2)


@pytest.mark.parametrize(
    ("drips", "length", "said"),
    [
        (40, 1000, r"an answer within 0\.2 s; got none"),  # each drip comes in time
        (2, 1000, "expected a server that answers; got IncompleteRead"),
    ],
)
def test_answers_that_do_not_come_to_an_end(
    drips: int, length: int, said: str, source: PoolConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evomerge.engines.openai_client._PAUSES", ())

    def drip() -> None:
        connection, _ = dripping.accept()
        with connection, suppress(OSError):
            connection.recv(4096)
            connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode())
            for _ in range(drips):
                connection.sendall(b" ")
                time.sleep(0.02)

    with socket.create_server(("127.0.0.1", 0)) as dripping:
        thread = threading.Thread(target=drip)
        thread.start()
        address = SimpleNamespace(url=f"http://127.0.0.1:{dripping.getsockname()[1]}")
        with pytest.raises(RunError, match=said):
            engine_on(address, source, timeout_seconds=0.2)
        thread.join()


@pytest.mark.parametrize(("value", "said"), [("a\nb-of-a-key", "it is no line of ASCII text"), ("\n", "it is not set")])
def test_what_cannot_be_a_key_is_not_shown(
    value: str, said: str, server: Any, source: PoolConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, value)
    with pytest.raises(RunError, match=said) as caught:
        engine_on(server, source, api_key=KEY)
    assert "of-a-key" not in str(caught.value)


def test_a_key_may_end_with_the_newline_of_its_file(
    server: Any, source: PoolConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "let-me-in-please"
    monkeypatch.setenv(KEY, f"{server.key}\n")
    assert engine_on(server, source, api_key=KEY).dtype == "float32"


@pytest.fixture
def own_scorers(make_fitness: Any, tmp_path: Path) -> Any:
    """A loss and two functions: one asks what every engine has, one what transformers' alone has."""
    (tmp_path / "text.txt").write_text("abcdefghij" * 20)
    (tmp_path / "asking.py").write_text(
        "def asking(engine, items):\n"
        "    score = engine.backend(chat_template=False).scoring([((2, 5), (6 + item,)) for item in items])\n"
        "    return [likelihood for likelihood, _ in score()]\n"
        "def reaching(engine, items):\n"
        "    return [engine.model(item) for item in items]\n"
    )

    def made(task: str, metric: str = "acc") -> FitnessConfig:
        function = {"kind": "function", "items": 4, "folder": tmp_path}
        scorers = {
            "ppl": LossConfig(kind="loss", text=tmp_path / "text.txt", tokens=128, block=16),
            "asking": FunctionConfig(**function, function="asking:asking"),
            "reaching": FunctionConfig(**function, function="asking:reaching"),
        }
        fitness: FitnessConfig = make_fitness(
            {"task": task, "metric": metric, "goal": "min" if metric == "loss" else "max"}, scorers=scorers
        )
        return fitness

    return made


@pytest.mark.parametrize(("task", "metric"), [("ppl", "loss"), ("asking", "acc")])
def test_scorers_agree_with_transformers(
    server: Any, source: PoolConfig, own_scorers: Any, task: str, metric: str
) -> None:
    items = ItemSet.of({task: (0, 1, 3)})
    found = []
    for engine in (engine_on(server, source), TransformersEngine(configured_pool(source), FLOAT32)):
        runner = EvalRunner(engine, own_scorers(task, metric), 3)
        engine.load(RECIPES["a sum"])
        ((response,), _) = runner.score(items)
        found.append((response.values, runner.digests()))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-3)
    assert found[0][1] == found[1][1]


def test_functions_that_reach_for_the_model_are_told_what_there_is(
    server: Any, source: PoolConfig, own_scorers: Any
) -> None:
    runner = EvalRunner(engine_on(server, source), own_scorers("reaching"), 3)
    with pytest.raises(TaskError, match=r"got engine\.model; ask engine\.backend\(chat_template=False\), which every"):
        runner.score(ItemSet.of({"reaching": (0, 1)}))
