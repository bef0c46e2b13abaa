"""Launch templates are read as their tools would read them, and the commands in them exist."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from evomerge.cli import app
from evomerge.config import RayConfig, load_experiment, shipped_folder, shipped_names

FOLDER = shipped_folder("cluster") / "launch"
SCRIPTS = ("ray-job.sh", "slurm.sbatch")
BIN = Path(sys.executable).parent

CONTAINER = {
    "type": "object",
    "required": ["name", "image", "resources"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9-]{1,63}$"},
        "image": {"type": "string"},
        "resources": {
            "type": "object",
            "additionalProperties": False,
            "patternProperties": {
                "^(requests|limits)$": {
                    "type": "object",
                    "additionalProperties": {"type": "string", "pattern": "^[0-9]+(Gi|Mi)?$"},
                }
            },
        },
        "volumeMounts": {"type": "array", "items": {"type": "object", "required": ["name", "mountPath"]}},
    },
}
GROUP = {
    "type": "object",
    "required": ["rayStartParams", "template"],
    "additionalProperties": False,
    "properties": {
        "groupName": {"type": "string"},
        "replicas": {"type": "integer"},
        "minReplicas": {"type": "integer"},
        "maxReplicas": {"type": "integer"},
        "rayStartParams": {"type": "object", "additionalProperties": {"type": "string"}},
        "template": {
            "type": "object",
            "required": ["spec"],
            "properties": {
                "spec": {
                    "type": "object",
                    "required": ["containers"],
                    "additionalProperties": False,
                    "properties": {
                        "containers": {"type": "array", "minItems": 1, "items": CONTAINER},
                        "volumes": {"type": "array", "items": {"type": "object", "required": ["name"]}},
                    },
                }
            },
        },
    },
}
RAY_JOB = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["entrypoint", "rayClusterSpec"],
            "additionalProperties": False,
            "properties": {
                "entrypoint": {"type": "string"},
                "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
                "shutdownAfterJobFinishes": {"type": "boolean"},
                "backoffLimit": {"type": "integer"},
                "rayClusterSpec": {
                    "type": "object",
                    "required": ["rayVersion", "headGroupSpec", "workerGroupSpecs"],
                    "additionalProperties": False,
                    "properties": {
                        "rayVersion": {"type": "string"},
                        "enableInTreeAutoscaling": {"type": "boolean"},
                        "autoscalerOptions": {"type": "object"},
                        "headGroupSpec": GROUP,
                        "workerGroupSpecs": {"type": "array", "items": {**GROUP, "required": ["groupName"]}},
                    },
                },
            },
        },
    },
}
"""The fields of KubeRay's RayJob (v1) that the template uses."""


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def check_command(text: str) -> None:
    """A command line of ours: the command exists, knows its options, and names a profile that is shipped."""
    words = shlex.split(text)
    assert words[:2] == ["evomerge", "run"]
    shown = CliRunner().invoke(app, ["run", "--help"], terminal_width=200).output
    for option in [word for word in words if word.startswith("--")]:
        assert option in shown
    profile = words[words.index("--executor") + 1]
    assert profile in (*shipped_names("cluster"), "$profile")


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_bash(name: str) -> None:
    done = subprocess.run(["bash", "-n", str(FOLDER / name)], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_run_what_is_there(name: str, tmp_path: Path) -> None:
    """Run for real, with stand-ins for the tools of a cluster that write down how they were called."""
    for tool in ("ray", "srun", "scontrol"):
        script = tmp_path / tool
        script.write_text(
            f'#!/usr/bin/env bash\n[ {tool} = scontrol ] && {{ echo node1; echo node2; exit; }}\necho {tool} "$@"\n'
        )
        script.chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}
    env = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path)}
    arguments = {"ray-job.sh": ["http://head:8265"], "slurm.sbatch": []}[name] + [
        "/shared/my.yaml",
        "/shared/runs/mine",
    ]
    done = subprocess.run(
        ["bash", str(FOLDER / name), *arguments], env=env, check=True, capture_output=True, text=True, timeout=30
    )
    before, _, ours = done.stdout.strip().partition(" -- ")
    assert ours == "evomerge run /shared/my.yaml --executor gpu --out /shared/runs/mine"
    check_command(ours)
    expected = {
        "ray-job.sh": "ray job submit --address http://head:8265",
        "slurm.sbatch": "srun --kill-on-bad-exit=0 ray symmetric-run --address node1:20007 --min-nodes 2",
    }
    assert before == expected[name]
    assert not list(tmp_path.glob(".ray-token*"))
    without = subprocess.run(["bash", str(FOLDER / name)], env=env, check=False, capture_output=True, text=True)
    assert without.returncode != 0


def test_slurms_warning_reaches_the_driver_alone(tmp_path: Path) -> None:
    """The stand-in for the job's step is the driver: it leaves its number in the run's lock, and drains."""
    srun = (
        f"trap 'sleep 0.3; echo drained; exit 7' TERM; printf 'pid %s on node1' $$ > {tmp_path}/run.lock\n"
        "while :; do sleep 0.1; done"
    )
    for tool, body in (("scontrol", "echo node1"), ("srun", srun)):
        (tmp_path / tool).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / tool).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node1", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1"}
    env = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path)}
    command = ["bash", str(FOLDER / "slurm.sbatch"), "/shared/my.yaml", str(tmp_path)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as batch:
        deadline = time.monotonic() + 20
        while not (tmp_path / "run.lock").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        batch.terminate()
        told, _ = batch.communicate(timeout=20)
    assert (told, batch.returncode) == ("drained\n", 7)
    assert not list(tmp_path.glob(".ray-token*"))


@pytest.mark.parametrize(("tool", "options"), [("symmetric-run", ("--address", "--min-nodes")), ("job submit", ())])
def test_ray_has_these_commands(tool: str, options: tuple[str, ...]) -> None:
    command = [str(BIN / "ray"), *tool.split(), "--help"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    for option in (*options, "--address"):
        assert option in shown


def test_slurm_directives_are_well_formed() -> None:
    lines = [line for line in (FOLDER / "slurm.sbatch").read_text().splitlines() if line.startswith("#SBATCH")]
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line) for line in lines)
    assert {"#SBATCH --requeue", "#SBATCH --ntasks-per-node=1"} <= set(lines)


def test_the_ray_job_keeps_to_kuberays_schema() -> None:
    job = read("kuberay-rayjob.yaml")
    jsonschema.validate(job, RAY_JOB)
    check_command(job["spec"]["entrypoint"])
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        mounted = {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_the_cluster_launcher_keeps_to_rays_own_schema() -> None:
    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    config = read("cluster-launcher.yaml")
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]
    # a worker of the profile fits a machine: Ray counts 70 % of its memory
    profile = load_experiment("quickstart", ["executor=gpu"]).executor
    assert isinstance(profile, RayConfig)
    node = config["available_node_types"]["gpu"]
    assert node["node_config"]["InstanceType"] == "g6.8xlarge"  # 128 GiB
    assert (profile.memory_gib or 0) <= 0.7 * 128
    assert (profile.cpus, profile.gpus) <= (node["resources"]["CPU"], node["resources"]["GPU"])
    # only the machines of the cluster may reach the dashboard
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])


def test_the_image_has_the_tested_versions() -> None:
    text = (FOLDER / "Containerfile").read_text()
    instructions = [line.split()[0] for line in text.splitlines() if re.match(r"[A-Z]+ ", line)]
    assert instructions[0] == "FROM"
    assert set(instructions) <= {"FROM", "RUN", "COPY", "USER", "ENV", "CMD"}
    assert "--constraint /src/constraints.txt" in text
    assert '"ray[default]"' in text, "jobs and the autoscaler need Ray's dashboard"
    root = Path(__file__).parents[2]
    constraints = (root / "constraints.txt").read_text()
    version = re.search(r"^ray==(\S+)$", constraints, re.MULTILINE)
    assert version is not None
    assert read("kuberay-rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == version[1]
    for line in text.splitlines():
        if line.startswith("COPY"):
            assert all((root / word).exists() for word in line.split()[1:-1])
