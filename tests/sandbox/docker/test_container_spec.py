"""Options of containers, without a Docker engine."""

from pathlib import Path
from typing import Any

import pytest

from drawloom.environments import Env
from drawloom.sandbox.docker.container_spec import Host, container_spec

HOST = Host("owner", Path("/bin/helper"), ttl=60.0, hard=False, security=("no-new-privileges",))
SITE = Env("site")
PAGE = Env("page", sidecars=(("shop", SITE), ("forum", SITE)))


def _spec(env: Env, **options: Any) -> dict[str, Any]:
    return container_spec(env, "box-1", env.image, HOST, **options)


@pytest.mark.parametrize("profile", ["strict", "swe", "build", "browser"])
def test_no_profile_gives_more_than_its_own_rights(profile: Any) -> None:
    spec = _spec(Env("image", profile=profile, memory="256m", pids=64, cpus=0.5))
    assert spec["cap_drop"] == ["ALL"]
    assert ("cap_add" in spec) == (profile == "build")
    assert (spec.get("read_only", False), spec["user"] != "0:0") == ((profile == "strict"),) * 2
    assert spec["security_opt"] == ["no-new-privileges"]
    assert spec["mem_limit"] == spec["memswap_limit"] == 256 << 20  # no swap
    assert (spec["pids_limit"], spec["nano_cpus"]) == (64, 500_000_000)
    assert spec["network_mode"] == "none"


def test_files_of_the_host_are_mounted_read_only() -> None:
    spec = _spec(Env("image", llm=True), gateway=Path("/tmp/gateway"))
    assert set(spec["volumes"]) == {"/bin/helper", "/tmp/gateway"}
    assert {mount["mode"] for mount in spec["volumes"].values()} == {"ro"}
    assert spec["entrypoint"][-2] == "--llm"


def test_a_container_of_this_owner_is_found_by_its_labels() -> None:
    labels = _spec(SITE)["labels"]
    assert labels["drawloom"] == "box-1"
    assert (labels["drawloom.owner"], labels["drawloom.key"]) == ("owner", SITE.key)


def test_all_of_a_pod_share_the_loopback_of_the_first_sidecar() -> None:
    pod = ("box-1", PAGE)
    first = container_spec(SITE, "box-1.shop", "site", HOST, pod=pod)
    second = container_spec(SITE, "box-1.forum", "site", HOST, pod=pod)
    assert first["network_mode"] == "none"
    assert first["extra_hosts"] == {"shop": "127.0.0.1", "forum": "127.0.0.1"}
    assert second["network_mode"] == _spec(PAGE)["network_mode"]
    assert second["network_mode"] == "container:drawloom-box-1.shop"
    assert "drawloom" not in first["labels"], "it is no environment of its own"


def test_a_network_and_a_runtime_are_given_to_whoever_asks() -> None:
    spec = _spec(Env("image", network=True, runtime="runsc"))
    assert (spec["network_mode"], spec["runtime"]) == ("bridge", "runsc")
    assert "runtime" not in _spec(SITE)
