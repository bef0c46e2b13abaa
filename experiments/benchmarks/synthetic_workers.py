"""Workers without a model that answer by arithmetic, take as long as they are told, and go wrong on order.

An order is a file in a folder: whichever worker takes it away first obeys it. So a benchmark can break workers in
mid-job without knowing where they are. `drive` is one whole run of such workers, to be killed and started again.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from evomerge.config import Experiment, RayConfig
from evomerge.fitting import space_of
from evomerge.opening import Lineup, open_run
from evomerge.outcome import Job, Outcome, Responses, Scored
from evomerge.recipe import Recipe
from evomerge.rng import stream
from evomerge.search import Search
from evomerge.stopping import Stop
from evomerge.workers import Executor, SerialExecutor, WorkerInfo

__all__ = ["LINEUP", "ORDERS", "SyntheticWorkers", "drive", "experiment"]

TASKS = ("alpha", "beta")
LINEUP = Lineup(base="base", experts=("a", "b"), layers=4, dtype="float32", digest="pool")
ORDERS = ("hang", "lose", "oom", "no start")


def experiment(evaluations: int, population: int, in_flight: int | None = None, **changes: object) -> Experiment:
    """Two objectives, four anchors, and generations of some size; or a random search without any; or what changes."""
    kind = "nsga2" if in_flight is None else "random"
    return Experiment.model_validate(
        {
            "version": 1,
            "name": "synthetic",
            "pool": {"base": "/nowhere/base", "experts": {"a": "/nowhere/a", "b": "/nowhere/b"}},
            "space": {
                "kind": "parameter",
                "operator": {"name": "task_arithmetic"},
                "knots": 2,
                "genes": {"weight": {"low": 0, "high": 1}},
            },
            "fitness": {
                "tasks": ["/nowhere/tasks"],
                "objectives": [{"name": "alpha", "task": "alpha"}, {"name": "beta", "task": "beta"}],
                "items": {"search": 12, "confirm": 20},
                "confirm": {"shortlist": 3},
            },
            "algorithm": {"kind": kind, "population": population, "in_flight": in_flight},
            "budget": {"evaluations": evaluations},
        }
        | changes
    )


def solved(recipe: Recipe, task: str, item: int) -> float:
    """1 if the item is easier than the recipe is good at the task; each layer of another model makes it worse."""
    weights = [v for _, field in recipe.parameters for _, rows in field.by_role() for row in rows for v in row]
    target = {"alpha": 0.3, "beta": 0.7}[task]
    ability = 1.0 - sum((w - target) ** 2 for w in weights) / len(weights)
    ability -= {"alpha": 0.1, "beta": 0.05}[task] * sum(hop.source is not None for hop in recipe.path)
    return float(hashlib.blake2b(f"{task}{item}".encode(), digest_size=1).digest()[0] / 256 < ability)


@dataclass(frozen=True)
class SyntheticWorkers:
    """Makes workers; picklable.

    Attributes:
        seconds: median time of a job; log-normal over candidates with a sigma of 0.3.
        orders: folder of orders; None: nothing goes wrong.
        trail: file that takes `pid unix-seconds what` for everything that a worker does.
    """

    seconds: float = 0.0
    orders: Path | None = None
    trail: Path | None = None

    def __call__(self) -> SyntheticWorkers:
        """The worker itself."""
        if self._ordered("no start"):
            raise RuntimeError("no such device, as ordered")
        self._note("up")
        return self

    def info(self) -> WorkerInfo:
        """60 items of two tasks."""
        return WorkerInfo(sizes=dict.fromkeys(TASKS, 60), digests=dict.fromkeys(TASKS, "items"), pool_digest="pool")

    def run(self, job: Job) -> Outcome:
        """Sleeps and answers."""
        seconds = self.seconds * float(stream(0, "job seconds", job.candidate).lognormal(0.0, 0.3))
        time.sleep(seconds / 2)
        if self._ordered("oom"):
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does it
        if self._ordered("hang"):
            self._stay_away()
        time.sleep(seconds / 2)
        if self._ordered("lose"):
            self._stay_away()
        responses = tuple(
            Responses(task=task, metric="acc", items=ids, values=tuple(solved(job.recipe, task, item) for item in ids))
            for task, ids in job.items.tasks
        )
        self._note(f"done {job.phase} {job.candidate}")
        made, forward = 0.1 * seconds, 0.9 * seconds
        return Scored(
            candidate=job.candidate,
            phase=job.phase,
            round=job.round,
            responses=responses,
            seconds={"materialize": made, "forward": forward},
            worker=str(os.getpid()),
        )

    def _stay_away(self) -> None:
        self._note("stuck")
        time.sleep(3600)

    def _ordered(self, order: str) -> bool:
        if self.orders is None:
            return False
        try:
            (self.orders / order).unlink()
        except FileNotFoundError:
            return False
        self._note(order)
        return True

    def _note(self, what: str) -> None:
        if self.trail is not None:
            with self.trail.open("a") as file:
                file.write(f"{os.getpid()} {time.time():.3f} {what}\n")


def drive(folder: Path, config: Experiment, executor: Executor, lineup: Lineup = LINEUP) -> None:
    """A run from its beginning or from where it stopped to its end."""
    with open_run(folder, config, lineup, space_of(config, lineup)) as store:
        try:
            info = executor.start()
            for _ in Search(config, lineup, store=store, executor=executor, info=info).run(Stop()):
                pass
        finally:
            executor.close()


def main() -> None:
    """`synthetic_workers.py FOLDER EVALUATIONS POPULATION SECONDS TIMEOUT [ADDRESS]`; without an address: serial."""
    folder, evaluations, population, seconds, timeout = sys.argv[1:6]
    place = Path(folder)
    # by its module's name, so that actors import it instead of unpickling it by value
    from synthetic_workers import SyntheticWorkers as Factory

    config = experiment(int(evaluations), int(population))
    if len(sys.argv) == 6:
        drive(place / "run", config, SerialExecutor(Factory()))
        return
    from evomerge.workers.journal import journal
    from evomerge.workers.ray_executor import RayExecutor

    ray = RayConfig(
        kind="ray",
        workers=3,
        address=sys.argv[6],
        job_timeout_seconds=float(timeout),
        start_timeout_seconds=60,
    )
    factory = Factory(seconds=float(seconds), orders=place / "orders", trail=place / "trail")
    with journal(place / "driver.log", print):
        drive(place / "run", config, RayExecutor(ray, factory))


if __name__ == "__main__":
    main()
