"""The files of cluster/ray: Ray's own schema and validator; for AWS, Ray's own launcher against a server of EC2's API on this machine."""

import copy
import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.s3_server import serve_s3

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "ray"
FILES = ["aws.yaml", "on-premises.yaml"]
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())


def cluster(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_the_file(name: str) -> None:
    jsonschema.validate(cluster(name), SCHEMA)
    prepared = prepare_config(cluster(name))
    validate_config(prepared)
    if name == "on-premises.yaml":
        (hosts,) = prepared["available_node_types"].values()
        assert hosts["min_workers"] == hosts["max_workers"] == len(cluster(name)["provider"]["worker_ips"])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("key", "value"), [("max_worker", 2), ("setup_commands", "ray stop"), ("auth", {"user": "dgl"})])
def test_what_is_wrong_is_noticed(name: str, key: str, value: Any) -> None:
    content = copy.deepcopy(cluster(name))
    content[key] = value
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        jsonschema.validate(content, SCHEMA)


@pytest.mark.parametrize("name", FILES)
def test_commands_are_shell_and_the_dashboard_is_not_for_everybody(name: str) -> None:
    content = cluster(name)
    for key in ("setup_commands", "head_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        for command in content.get(key, []):
            subprocess.run(["bash", "-n", "-c", command], check=True, capture_output=True)
    (start,) = [command for command in content["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in shlex.split(start)


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The APIs of AWS on this machine; Ray's new keys go to a home folder of their own."""
    (tmp_path / ".ssh").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "hush", "DEFAULT_REGION": "eu-central-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with serve_s3() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        yield


def test_ray_s_launcher_finds_the_instance_types_and_starts_nodes(aws: None) -> None:
    import boto3

    content = cluster("aws.yaml")
    boto3.client("iam").create_instance_profile(
        InstanceProfileName=content["available_node_types"]["head"]["node_config"]["IamInstanceProfile"]["Name"]
    )
    config = _bootstrap_config(content, no_config_cache=True)
    resources = {name: node["resources"] for name, node in config["available_node_types"].items()}
    assert (resources["head"]["CPU"], resources["decoder"]["CPU"], resources["encoder"]["GPU"]) == (0, 32, 1)
    provider = _get_node_provider(config["provider"], config["cluster_name"])
    for name, node in config["available_node_types"].items():
        (started,) = provider.create_node(
            copy.deepcopy(node["node_config"]), {"ray-node-type": "worker", "ray-node-name": name}, 1
        ).values()
        assert started.instance_type == content["available_node_types"][name]["node_config"]["InstanceType"]
