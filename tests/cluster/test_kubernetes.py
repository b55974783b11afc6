"""The manifests of cluster/kubernetes: Kubernetes' own schemas, JobSet's published models, KubeRay's fields, and what Ray reads of them."""

import copy
import json
import shlex
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from torch.distributed.run import parse_args

from dgl_scale import __version__
from tests.docs.real_parsers import run_command_line

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "cluster" / "kubernetes"
KUBERAY = json.loads((Path(__file__).parent / "schemas" / "kuberay_v1.json").read_text())
KUBERNETES = version("kubernetes-validate").rpartition(".")[0]
IN_THE_IMAGE = "/opt/dgl_scale"


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


def pods(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pod specs of a manifest."""
    if content["kind"] == "RayJob":
        cluster = content["spec"]["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            yield group["template"]["spec"]
    else:
        for job in content["spec"]["replicatedJobs"]:
            yield job["template"]["spec"]["template"]["spec"]


def validate_ray_job(content: dict[str, Any]) -> None:
    jsonschema.validate(content, KUBERAY)
    for pod in pods(content):
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", "spec": pod}, KUBERNETES, strict=True)
    cluster = {"metadata": content["metadata"], "spec": content["spec"]["rayClusterSpec"]}
    _derive_autoscaling_config_from_ray_cr(cluster)


def validate_job_set(content: dict[str, Any]) -> None:
    # The models leave out what they do not know; what comes back must be all that went in.
    understood = JobsetV1alpha2JobSet.from_dict(content).to_dict()
    assert understood == content
    for job in content["spec"]["replicatedJobs"]:
        kubernetes_validate.validate({"apiVersion": "batch/v1", "kind": "Job", **job["template"]}, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", ["build.yaml", "evaluate.yaml"])
def test_a_ray_job_is_valid(name: str) -> None:
    content = manifest(name)
    validate_ray_job(content)
    assert content["spec"]["rayClusterSpec"]["rayVersion"] == ray.__version__


def test_the_job_set_is_valid() -> None:
    content = manifest("train.yaml")
    validate_job_set(content)
    (job,) = content["spec"]["replicatedJobs"]
    spec, name = job["template"]["spec"], content["metadata"]["name"]
    words = spec["template"]["spec"]["containers"][0]["command"]
    assert spec["parallelism"] == spec["completions"] == int(option(words, "--nnodes"))
    assert option(words, "--master-addr") == f"{name}-{job['name']}-0-0.{name}"
    parse_args([word for word in words[1:] if "$(" not in word])
    assert int(option(words, "--shutdown-timeout")) < spec["template"]["spec"]["terminationGracePeriodSeconds"]
    gpus = spec["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert gpus == option(words, "--nproc-per-node")


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("build.yaml", "spec.rayClusterSpec.workerGroupSpecs.0.minReplica", 1),
        ("build.yaml", "spec.rayClusterSpec.workerGroupSpecs.0.replicas", "4"),
        ("build.yaml", "spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0),
        ("build.yaml", "spec.rayClusterSpec.headGroupSpec.rayStartParams.resources", "no resources"),
        ("build.yaml", "spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.imagePolicy", "Always"),
        ("evaluate.yaml", "spec.shutdownAfterJobFinished", True),
        ("evaluate.yaml", "spec.rayClusterSpec.workerGroupSpecs.0.template.spec.volumes.0.emptyDirs", {}),
        ("train.yaml", "spec.failurePolicy.maxRestart", 3),
        ("train.yaml", "spec.failurePolicy.rules.0.action", 3),
        ("train.yaml", "spec.replicatedJobs.0.template.spec.backofLimit", 0),
        ("train.yaml", "spec.replicatedJobs.0.template.spec.template.spec.containers.0.command", "torchrun"),
    ],
)
def test_what_is_wrong_is_noticed(name: str, path: str, value: Any) -> None:
    content = copy.deepcopy(manifest(name))
    *parents, key = path.split(".")
    place: Any = content
    for parent in parents:
        place = place[int(parent) if parent.isdecimal() else parent]
    place[key] = value
    with pytest.raises((AssertionError, ValueError, jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        (validate_job_set if name == "train.yaml" else validate_ray_job)(content)


def commands() -> dict[str, list[str]]:
    """What the manifests run, without the launcher."""
    found = {name: shlex.split(manifest(name)["spec"]["entrypoint"]) for name in ("build.yaml", "evaluate.yaml")}
    (pod,) = pods(manifest("train.yaml"))
    (check,), (ranks,) = pod["initContainers"], pod["containers"]
    assert check["args"] == ranks["args"]
    launched = [word for word in ranks["command"] if not word.startswith("--")]
    assert launched == ["torchrun", "dgl_scale/train.py"]
    return found | {"train.yaml": ["python", "dgl_scale/train.py", *ranks["args"]]}


@pytest.mark.parametrize("name", ["build.yaml", "evaluate.yaml", "train.yaml"])
def test_the_command_s_config_and_overrides_are_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = [word.replace(IN_THE_IMAGE, str(ROOT)) for word in commands()[name]]
    with pytest.raises(SystemExit) as ended:
        run_command_line([*words, "--show-config"])
    assert ended.value.code == 0


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_pods_have_no_more_rights_than_they_need(path: Path) -> None:
    for pod in pods(manifest(path.name)):
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not [volume for volume in pod.get("volumes", []) if "hostPath" in volume]
        for container in (*pod["containers"], *pod.get("initContainers", [])):
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert container["image"].endswith(f":{__version__}")
            # Secrets by name only.
            assert "env" not in container
            assert all(set(source) == {"secretRef"} for source in container.get("envFrom", []))


def option(words: list[str], name: str) -> str:
    (value,) = (word.partition("=")[2] for word in words if word.startswith(f"{name}="))
    return value
