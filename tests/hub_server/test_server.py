"""The test hub does what the real client expects of a hub: publishing, reading, proposing, refusing."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub_server import HubServer

needs_xet = pytest.mark.skipif(find_spec("hf_xet") is None, reason="hf_xet is not installed")
# The client sends LFS parts by a parameter that its HTTP library wants to be called otherwise.
lfs = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.mark.parametrize("mode", ["basic", "multipart", pytest.param("xet", marks=needs_xet)])
def test_the_whole_life_of_a_repository(hub: HubServer, mode: str) -> None:
    if mode == "multipart":
        hub.settings.transfer = "multipart"
    hub.settings.page = 3  # Lists come in pages.
    done = hub.run(["-m", "tests.hub_server.round_trip"], token=hub.token, xet=mode == "xet")
    assert done.returncode == 0, done.stderr
    uploaded = json.loads(done.stdout)["uploaded"]
    route, least = {"basic": ("cdn.put", 2), "multipart": ("cdn.put-part", 5), "xet": ("hub.xet-write-token", 1)}[mode]
    assert hub.log.count(route) >= least
    assert hub.log.received("cdn.*") == (0 if mode == "xet" else uploaded)


@needs_xet
def test_what_is_in_the_xet_store_is_the_same_with_and_without_xet(hub: HubServer, tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    hub.add_repo("me/model", {"model.safetensors": data}, xet=True)
    code = "import huggingface_hub as h; print(h.hf_hub_download('me/model', 'model.safetensors'))"
    for xet in (True, False):
        hub.log.clear()
        done = hub.run(["-c", code], xet=xet)
        assert Path(done.stdout.strip()).read_bytes() == data, done.stderr
        assert hub.log.count("hub.xet-read-token") == xet
        assert hub.log.sent("cdn.get") == (0 if xet else len(data))
    assert hub.read("me/model", "model.safetensors") == data
    assert hub.api().get_paths_info("me/model", "model.safetensors")[0].xet_hash is not None


class TestReading:
    @pytest.fixture
    def api(self, hub: HubServer) -> HfApi:
        hub.add_repo("me/model", {"config.json": b"{}", "model.safetensors": b"s" * 100})
        return hub.api()

    def test_a_missing_repository(self, api: HfApi, hub: HubServer) -> None:
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("me/nothing")
        with pytest.raises(RepositoryNotFoundError):
            hub.api(hub.token).model_info("me/nothing")

    def test_a_missing_revision(self, api: HfApi) -> None:
        with pytest.raises(RevisionNotFoundError):
            api.model_info("me/model", revision="nothing")

    def test_a_missing_file(self, api: HfApi, hub: HubServer, tmp_path: Path) -> None:
        with pytest.raises(RemoteEntryNotFoundError):
            hf_hub_download("me/model", "nothing", endpoint=hub.endpoint, cache_dir=tmp_path, token=False)
        with pytest.raises(RemoteEntryNotFoundError):
            list(api.list_repo_tree("me/model", "nothing"))

    def test_a_token_that_is_none(self, hub: HubServer) -> None:
        with pytest.raises(HfHubHTTPError, match="Invalid user token"):
            hub.api("hf_nobody").whoami()

    def test_a_private_repository_is_there_for_its_owner_only(self, hub: HubServer) -> None:
        hub.add_repo("me/secret", {"a.txt": b"a"}, private=True)
        assert hub.api(hub.token).model_info("me/secret").private is True
        assert hub.api(hub.read_token).file_exists("me/secret", "a.txt")
        for token in (None, hub.stranger_token):
            with pytest.raises(RepositoryNotFoundError):
                hub.api(token).model_info("me/secret")

    def test_a_gated_repository_shows_its_list_but_not_its_files(self, hub: HubServer, tmp_path: Path) -> None:
        repo = hub.add_repo("me/gated", {"a.txt": b"a"}, gated="manual")
        for token in (None, hub.stranger_token):
            api = hub.api(token)
            assert api.model_info("me/gated").gated == "manual"
            assert [entry.path for entry in api.list_repo_tree("me/gated")] == ["a.txt"]
            with pytest.raises(GatedRepoError):
                api.auth_check("me/gated")
            with pytest.raises(GatedRepoError):
                api.hf_hub_download("me/gated", "a.txt", cache_dir=tmp_path)
        repo.allowed.add("stranger")
        hub.api(hub.stranger_token).auth_check("me/gated")
        hub.api(hub.read_token).auth_check("me/gated")


class TestWriting:
    @pytest.fixture(autouse=True)
    def _model(self, hub: HubServer) -> None:
        hub.add_repo("me/model", {"a.txt": b"a"})

    def test_a_read_only_token_may_propose_but_not_commit(self, hub: HubServer) -> None:
        api, add = hub.api(hub.read_token), [CommitOperationAdd("b.txt", b"b")]
        with pytest.raises(HfHubHTTPError, match="403"):
            api.create_commit("me/model", add, commit_message="no")
        with pytest.raises(HfHubHTTPError, match="403"):
            api.create_repo("me/other")
        with pytest.raises(HfHubHTTPError, match="403"):
            api.auth_check("me/model", write=True)
        assert api.create_commit("me/model", add, commit_message="may I", create_pr=True).pr_num == 1
        with pytest.raises(HfHubHTTPError, match="403"):
            api.merge_pull_request("me/model", 1)
        assert hub.paths("me/model") == ["a.txt"]
        assert hub.paths("me/model", "refs/pr/1") == ["a.txt", "b.txt"]

    def test_a_stranger_may_propose_and_go_on_with_it(self, hub: HubServer) -> None:
        api = hub.api(hub.stranger_token)
        with pytest.raises(HfHubHTTPError, match="403"):
            api.create_commit("me/model", [CommitOperationAdd("b.txt", b"b")], commit_message="no")
        made = api.create_commit("me/model", [CommitOperationAdd("b.txt", b"b")], commit_message="b", create_pr=True)
        add = [CommitOperationAdd("c.txt", b"c")]
        api.create_commit("me/model", add, commit_message="c", revision=made.pr_revision)
        assert hub.paths("me/model", "refs/pr/1") == ["a.txt", "b.txt", "c.txt"]
        api.change_discussion_status("me/model", 1, "closed")

    def test_without_a_token_nothing_is_written(self, hub: HubServer) -> None:
        with pytest.raises(HfHubHTTPError, match="401"):
            hub.api().create_commit(
                "me/model", [CommitOperationAdd("b.txt", b"b")], commit_message="no", create_pr=True
            )

    def test_a_pull_request_by_itself_is_a_draft_until_it_is_opened(self, hub: HubServer) -> None:
        api = hub.api(hub.token)
        assert api.create_pull_request("me/model", "an idea").status == "draft"
        assert api.change_discussion_status("me/model", 1, "open").new_status == "open"
        assert api.get_discussion_details("me/model", 1).status == "open"

    def test_a_commit_on_a_parent_that_is_not_the_head_is_refused(self, hub: HubServer) -> None:
        api, add = hub.api(hub.token), [CommitOperationAdd("b.txt", b"b")]
        stale = api.model_info("me/model").sha
        hub.add_files("me/model", {"c.txt": b"c"})
        for create_pr in (False, True):
            with pytest.raises(HfHubHTTPError, match="412"):
                api.create_commit("me/model", add, commit_message="late", parent_commit=stale, create_pr=create_pr)
        assert hub.paths("me/model") == ["a.txt", "c.txt"]
        assert list(api.get_repo_discussions("me/model")) == []

    def test_a_merge_keeps_what_came_to_main_meanwhile(self, hub: HubServer) -> None:
        api = hub.api(hub.token)
        api.create_commit("me/model", [CommitOperationAdd("b.txt", b"b")], commit_message="b", create_pr=True)
        hub.add_files("me/model", {"c.txt": b"c"})
        api.merge_pull_request("me/model", 1)
        assert hub.paths("me/model") == ["a.txt", "b.txt", "c.txt"]
        assert api.get_discussion_details("me/model", 1).status == "merged"

    @lfs
    def test_what_is_stored_already_is_not_sent_again(self, hub: HubServer) -> None:
        api, add = hub.api(hub.token), [CommitOperationAdd("model.bin", b"m" * 1000)]
        api.create_commit("me/model", add, commit_message="m", create_pr=True)
        hub.log.clear()
        api.create_repo("me/other")
        api.create_commit("me/other", [CommitOperationAdd("same.bin", b"m" * 1000)], commit_message="m")
        api.create_commit("me/other", [CommitOperationCopy("same.bin", "copy.bin")], commit_message="c")
        assert hub.log.count("cdn.*") == 0
        assert hub.read("me/other", "copy.bin") == b"m" * 1000

    @lfs
    def test_a_broken_upload_is_refused(self, hub: HubServer) -> None:
        add = CommitOperationAdd("model.bin", b"m" * 1000)
        add.upload_info.sha256 = bytes(32)
        with pytest.raises(RuntimeError, match=r"model\.bin") as caught:
            hub.api(hub.token).create_commit("me/model", [add], commit_message="m")
        assert "The sha256 of what was uploaded is not its oid" in str(caught.value.__cause__)
        assert hub.paths("me/model") == ["a.txt"]


def test_a_scenario_that_prints_a_token_fails(hub: HubServer) -> None:
    with pytest.raises(AssertionError, match="the output holds the read token"):
        hub.run(["-c", "import os; print('it is', os.environ['HF_TOKEN'])"], token=hub.read_token)


def test_a_test_that_shows_a_token_fails_and_does_not_show_it(hub: HubServer, tmp_path: Path) -> None:
    ways = ["print(hub.token)", "raise ValueError(hub.token)", "import logging; logging.warning(hub.token)"]
    tests = "".join(f"def test_{number}(hub):\n    {way}\n\n\n" for number, way in enumerate(ways))
    (tmp_path / "test_it.py").write_text(tests)
    (tmp_path / "conftest.py").write_text("from tests.hub_server.fixtures import hub, pytest_runtest_makereport\n")
    done = hub.run(["-m", "pytest", "-p", "no:cacheprovider", "-rA", str(tmp_path)])
    assert "3 failed" in done.stdout
    assert done.stdout.count("a token of the hub is in what this test printed") >= 3
    assert "hf_" not in done.stdout
