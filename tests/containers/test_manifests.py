"""deploy/compose.yaml and deploy/kubernetes: valid by their schemas, in agreement with the image and the command."""

import os
import pathlib
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml

from tests.containers.images import instructions
from tests.containers.test_process import READ_ONLY
from tests.harness.processes import KV, ROOT
from tests.harness.programs import require
from tests.harness.waiting import DEADLINE_S

if TYPE_CHECKING:
    from tests.containers.conftest import Contain, Contained

COMPOSE = ROOT / "deploy/compose.yaml"
MANIFESTS = sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))
WORKLOADS = [(path, document) for path in MANIFESTS for document in yaml.safe_load_all(path.read_text())]
PODS = [
    pytest.param(document["spec"]["template"]["spec"], document["spec"], id=path.stem)
    for path, document in WORKLOADS
    if document["kind"] != "Service"
]
IMAGE = dict(instructions(ROOT / "deploy/Dockerfile"))
Object = dict[str, Any]


def kvd_of(pod: Object) -> Object:
    (kvd,) = pod["initContainers"]
    return dict(kvd)


def started_by(container: Object) -> list[str]:
    """What Kubernetes runs: a command replaces the image's entrypoint; arguments replace the image's command."""
    entrypoint, command = yaml.safe_load(IMAGE["ENTRYPOINT"]), yaml.safe_load(IMAGE["CMD"])
    if container.get("command"):
        return [*container["command"], *container.get("args", [])]
    return [*entrypoint, *(container.get("args") or command)]


@pytest.mark.parametrize("version", ["1.29", "1.33", "1.37"])
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_manifests_follow_the_schemas_of_kubernetes(path: pathlib.Path, version: str) -> None:
    documents = list(yaml.safe_load_all(path.read_text()))
    assert documents
    for document in documents:
        kubernetes_validate.validate(document, version, strict=True)


def test_an_error_in_a_manifest_is_found() -> None:
    document = WORKLOADS[0][1] | {"spec": WORKLOADS[0][1]["spec"] | {"replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, "1.29", strict=True)


@pytest.mark.parametrize(("mistake", "status"), [("", 0), ("\n  kvd2: {imag: kvd}", 1)])
def test_the_compose_file_follows_the_schema_of_compose(mistake: str, status: int, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text(COMPOSE.read_text().replace("\n\nvolumes:", f"{mistake}\n\nvolumes:"))
    result = subprocess.run(  # noqa: S603 - the validator, with its own schema
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema=vendor.compose-spec", str(file)],
        capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert result.returncode == status, result.stdout + result.stderr


def test_the_compose_file_agrees_with_the_image() -> None:
    compose = yaml.safe_load(COMPOSE.read_text())
    kvd, client = compose["services"]["kvd"], compose["services"]["client"]
    context = (COMPOSE.parent / kvd["build"]["context"]).resolve()
    assert (context / kvd["build"]["dockerfile"]).is_file()
    mounted = dict(volume.split(":") for volume in kvd["volumes"])
    assert set(mounted) == set(compose["volumes"])
    assert sorted(mounted.values()) == sorted(IMAGE["VOLUME"].split())
    assert set(client["volumes"]) <= set(kvd["volumes"])


@pytest.mark.parametrize(("pod", "spec"), PODS)
def test_the_containers_of_a_pod_share_the_socket_as_one_user(pod: Object, spec: Object) -> None:
    uid, _, gid = IMAGE["USER"].partition(":")
    security = pod["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (int(uid), int(gid), int(gid))
    claims = {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
    volumes = {volume["name"] for volume in pod["volumes"]} | claims
    for container in (kvd_of(pod), *pod["containers"]):
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() <= volumes
        assert mounts["socket"] == "/run/kvd"
        assert container["securityContext"]["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize(("pod", "spec"), PODS)
def test_the_command_of_a_pod_serves_and_its_probes_notice(pod: Object, spec: Object, contain: "Contain") -> None:
    """Only the mounted directories are writable."""
    require("unshare", "mount", root=True)
    kvd = kvd_of(pod)
    mounts = {mount["mountPath"] for mount in kvd["volumeMounts"]}
    command, verb, *arguments = started_by(kvd)
    assert (command, verb) == ("kv", "serve")
    writable = "{folder}/data" if "/data" in mounts else "{folder}/nowhere"
    daemon = contain(READ_ONLY, *(word.replace("/data", writable) if word[0] == "/" else word for word in arguments))
    probes = [kvd[name]["exec"]["command"] for name in kvd if name.endswith("Probe")]
    assert len(probes) >= 2
    assert [probe(daemon, words) for words in probes] == [0] * len(probes)
    os.kill(daemon.pid, signal.SIGTERM)
    assert daemon.end()[0] == 0
    assert [probe(daemon, words) for words in probes] == [69] * len(probes)


def probe(daemon: "Contained", words: list[str]) -> int:
    assert words[0] == "kv"
    result = subprocess.run(  # noqa: S603 - what the manifest names
        [*KV, *words[1:]], env=daemon.environment, capture_output=True, timeout=DEADLINE_S, check=False
    )
    assert result.stdout == b""
    return result.returncode
