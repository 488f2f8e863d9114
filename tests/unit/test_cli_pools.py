"""The pool commands over a client that only remembers."""

from __future__ import annotations

import json
from pathlib import Path

from remuda.cli.pool import _policy
from remuda.retries import RetryPolicy, RetryRule, retry_row
from tests.unit.fake_pools import FakeClient, client, remuda

__all__ = ["client"]


def test_the_quickstarts_pool(client: FakeClient) -> None:
    result = remuda(
        "pool create sim --provider local --slots-per-vm 2 --min-slots 0 --max-slots 8"
        " --idle-time 30"
    )
    assert (result.exit_code, result.stdout) == (0, "pool sim is SUBMITTED: 0..8 slots\n")
    assert client.calls == [
        ("create_pool", ("sim", {"provider": "local", "backend": None, "image": "default",
                                 "slots_per_vm": 2})),
        ("setup_elastic", {"minimum_total_slots": 0, "maximum_total_slots": 8,
                           "minimum_idle_time_seconds": 30.0, "resize_period": 1.0}),
    ]  # fmt: skip


def test_a_pool_of_fixed_size_with_everything(client: FakeClient) -> None:
    result = remuda(
        "pool create fix --provider ec2 --image ubuntu --backend ssh --vms 2 --memory-per-vm 4G"
        " --isolation owner --heartbeat 2s --stalling-interval 1m --tag a --tag b"
        " --setting region=1 --setting spot=true --no-submit --json"
    )
    assert result.exit_code == 0
    assert [pool["state"] for pool in json.loads(result.stdout)] == ["UNSUBMITTED"]
    assert client.calls[0][1][1] == {
        "provider": "ec2",
        "backend": "ssh",
        "image": "ubuntu",
        "instance_count": 2,
        "memory_bytes_per_vm": 4 << 30,
        "isolation": "owner",
        "heartbeat_s": 2.0,
        "stalling_interval_s": 60.0,
        "tags": ["a", "b"],
        "settings": {"region": "1", "spot": True},
    }


def test_elastic_defaults_depend_on_the_provider(client: FakeClient) -> None:
    remuda("pool create far --provider ec2 --max-slots 8 --resize-factor 0.5 --min-idle-slots 1")
    assert client.calls[1][1] == {
        "maximum_total_slots": 8,
        "resize_factor": 0.5,
        "minimum_idle_slots": 1,
        "resize_period": 90.0,
    }


def test_a_refused_pool_leaves_nothing_behind(client: FakeClient) -> None:
    client.wrong = True
    result = remuda("pool create sim --max-slots 8")
    assert (result.exit_code, result.stderr) == (2, "remuda: error: no\n")
    assert client.calls[-1] == ("delete", "sim")


def test_a_size_that_cannot_be_is_refused_before_there_is_a_pool(client: FakeClient) -> None:
    for options, named in (
        ("--resize-factor nan", "resize_factor"),
        ("--min-idle-slots 9", "minimum_idle_slots"),
        ("--resize-period 500ms", "resize_period"),
    ):
        result = remuda(f"pool create sim --max-slots 8 {options}")
        assert (result.exit_code, named in result.stderr) == (2, True), result.stderr
    assert client.calls == []


def test_set(client: FakeClient) -> None:
    client.create_pool("sim")
    assert remuda("pool set sim --max-slots 6 --idle-time 2m --tag x").exit_code == 0
    assert client.calls[-1] == (
        "set",
        {
            "tags": ["x"],
            "is_elastic": True,
            "elastic_maximum_slots": 6,
            "elastic_minimum_idle_time_s": 120.0,
        },
    )
    assert remuda("pool set sim --vms 3").exit_code == 0
    assert client.calls[-1] == ("set", {"instance_count": 3, "is_elastic": False})
    assert remuda("pool set nope --vms 3").exit_code == 1


def test_list_and_show(client: FakeClient) -> None:
    assert json.loads(remuda("pool list --json").stdout) == []
    pool = client.create_pool("sim", slots_per_vm=2)
    pool.setup_elastic(maximum_total_slots=8)
    lines = remuda("pool list").stdout.splitlines()
    assert lines[1].split()[:4] == ["sim", "UNSUBMITTED", "0..8", "slots"]
    shown = remuda("pool show sim").stdout
    assert "0..8 slots" in shown
    assert "RUNNING=2" in shown
    found = json.loads(remuda("pool show sim --json").stdout)
    assert found[0]["elastic"]["maximum_total_slots"] == 8
    assert (found[0]["jobs"], found[0]["vms_by_state"]) == (
        {"NEW": 0, "RUNNING": 2},
        {"RUNNING": 1},
    )


def test_close(client: FakeClient) -> None:
    client.create_pool("sim")
    result = remuda("pool close sim")
    assert (result.exit_code, result.stdout) == (0, "pool sim is CLOSING\n")
    assert result.stderr == "2 jobs and 1 lease still to end; --now ends them\n"
    assert remuda("pool close sim --now --wait").stdout == "pool sim is CLOSED\n"
    late = remuda("pool close sim --timeout 0")
    assert (late.exit_code, late.stderr) == (1, "remuda: error: pool sim is still CLOSING\n")


def test_delete_and_explain(client: FakeClient) -> None:
    client.create_pool("sim")
    assert remuda("pool explain sim").stdout == "Because.\n"
    deleted = remuda("pool delete sim")
    assert deleted.stdout == "pool sim is deleted\n"
    assert deleted.stderr == "left: 1 VM and 2 machines without a VM\nits provider is asked\n"
    assert remuda("pool delete sim --no-wait").stdout == "pool sim is being deleted\n"
    assert remuda("pool delete sim --timeout 0").exit_code == 124


def test_update_and_confirm_loss(client: FakeClient) -> None:
    client.create_pool("sim")
    assert remuda("pool update sim --image new").stdout == "new VMs of pool sim are made of new\n"
    updated = remuda("pool update sim --image new --rolling --max-unavailable 2")
    assert updated.stdout == "pool sim is updated to new\n"
    assert updated.stderr == "1 of 3 VMs run from new; a launch failed: no luck\n"
    assert remuda("pool update sim --image new --rolling --timeout 0").exit_code == 124
    assert remuda("pool update sim --image new --no-wait").exit_code == 2
    assert remuda("pool confirm-loss sim").stdout == "the loss of pool sim is confirmed\n"
    assert [call for call in client.calls if call[0] in ("update_image", "confirm_loss")] == [
        ("update_image", ("new", None)),
        ("update_image", ("new", 2)),
        ("update_image", ("new", 1)),
        ("confirm_loss", "sim"),
    ]
    assert remuda("pool explain nope").stderr == (
        "remuda: error: there is no pool 'nope'\nhint: pools: none yet\n"
    )


def test_hosts_are_for_static_pools(client: FakeClient, tmp_path: Path) -> None:
    """They are not left out silently, and a static pool is not made without."""
    file = tmp_path / "hosts.json"
    file.write_text('[{"address": "10.0.0.5"}]')
    assert "--provider static" in remuda(f"pool create lab --hosts {file}").stderr
    assert "--hosts" in remuda("pool create lab --provider static").stderr
    assert client.calls == []
    made = remuda(f"pool create lab --provider static --hosts {file}")
    assert made.exit_code == 0
    assert client.calls[0][1][1]["settings"]["hosts"][0]["address"] == "10.0.0.5"


def test_a_pools_policy_is_shown() -> None:
    row = retry_row(RetryPolicy(max_retries=2, delay_s=0.5, rules=[RetryRule(exit_codes=[1])]))
    assert _policy(row) == "max_retries=2, delay_s=0.5, rules=1"
    assert _policy(None) == ""


def test_what_a_pool_is_found_by_and_how_it_ends(client: FakeClient) -> None:
    result = remuda(
        "pool create sim --label team=wind --label x= --shortname sim-1 --constraint min_cores=8"
        " --constraint cpu_model=*EPYC* --completion-ttl 1.02:00:00 --auto-delete"
    )
    assert result.exit_code == 0, result.output
    assert client.calls[0][1][1] == {
        "provider": "local", "backend": None, "image": "default", "shortname": "sim-1",
        "labels": {"team": "wind", "x": ""}, "auto_delete": True, "completion_ttl": 93600.0,
        "constraints": {"min_cores": 8, "cpu_model": "*EPYC*"},
    }  # fmt: skip
    assert remuda("pool set sim --completion-ttl 2h --no-auto-delete").exit_code == 0
    assert remuda("pool list --tag a --tag b --label team=wind").exit_code == 0
    assert "no quota" in remuda("pool show sim").stdout
    assert remuda("pool delete sim --purge-results --no-wait").exit_code == 0
    assert [call for call in client.calls[1:] if call[0] != "vms"] == [
        ("set", {"completion_ttl": 7200.0, "auto_delete": False}),
        ("pools", {"tags": ["a", "b"], "labels": {"team": "wind"}}),
        ("delete", ("sim", False, True)),
    ]


def test_a_time_to_live_is_read_strictly(client: FakeClient) -> None:
    for wrong in ("00:00:00junk", "24:00:00", "1.2.3", "-1.00:00:00", "4000.00:00:00"):
        result = remuda(f"pool create sim --completion-ttl={wrong}")
        assert result.exit_code == 2
        assert "--completion-ttl" in result.stderr
    assert client.calls == []


def test_what_vms_say(client: FakeClient) -> None:
    remuda("pool create sim")
    assert remuda("pool logs sim --vm 3").stdout == "stdout of 3"
    assert remuda("pool logs sim --vm sim-3 --stderr").stdout == "stderr of sim-3"
    assert remuda("pool logs sim --fresh").stdout == "new of None"
    client.by_name["sim"].fields["state"] = "CLOSED"
    assert remuda("pool logs sim -f").stdout == "new of None"
    assert remuda("pool logs sim -f --fresh").exit_code == 2


def test_resources(client: FakeClient) -> None:
    remuda("pool create sim --resource a.bin --resource b=/x/b --wait-for-resources")
    assert client.calls[0][1][1]["resources"] == ["a.bin", ("/x/b", "b")]
    assert client.calls[0][1][1]["wait_for_resources"] is True
    assert "file:///a" in remuda("pool resources sim").stdout
    assert client.calls[1:] == []
    result = remuda("pool resources sim c d=https://example.org/d")
    assert "2 resources new" in result.stderr
    assert remuda("pool resources sim --update --json").exit_code == 0
    assert client.calls[1:] == [
        ("update_resources", ["c", ("https://example.org/d", "d")]),
        ("update_resources", []),
    ]


def test_which_secrets_jobs_are_given(client: FakeClient) -> None:
    remuda("pool create sim --secret A --secret B --secret-prefix AWS_")
    assert client.calls[0][1][1]["secrets"] == {"names": ["A", "B"], "prefixes": ["AWS_"]}
    assert remuda("pool set sim --no-secrets").exit_code == 0
    assert remuda("pool set sim --no-secrets --secret A").exit_code == 2
    assert client.calls[1:] == [("set", {"secrets": {}})]


def test_a_pool_from_a_profile(client: FakeClient) -> None:
    assert remuda("pool create sim --profile big --min-slots 2 --tag x").exit_code == 0
    assert client.calls[0] == ("create_pool", ("sim", {
        "profile": "big", "provider": None, "backend": None, "image": None, "tags": ["x"],
        "is_elastic": True, "elastic_minimum_slots": 2,
    }))  # fmt: skip


def test_profiles(client: FakeClient) -> None:
    line = "profile create big --description wide --slots-per-vm 4 --max-slots 8 --replace"
    assert remuda(line).stdout == "profile big is stored\n"
    assert client.calls == [("create_profile", ("big", {
        "description": "wide", "provider": "local", "backend": None, "image": "default",
        "replace": True, "slots_per_vm": 4, "is_elastic": True, "elastic_maximum_slots": 8,
    }))]  # fmt: skip
    assert "big" in remuda("profile list").stdout
    assert "slots_per_vm" in remuda("profile show big").stdout
    assert json.loads(remuda("profile show big --json").stdout)[0]["fields"] == {"slots_per_vm": 4}
    assert remuda("profile delete big").stdout == "profile big is removed\n"
