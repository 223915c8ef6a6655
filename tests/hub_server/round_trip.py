"""The whole life of a repository, by the real client: ``python -m tests.hub_server.round_trip``.

Everything is checked against what was sent. It prints one line of JSON at the end; what goes wrong is a traceback.
"""

from __future__ import annotations

import json
import logging
import os
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem, errors

REPO = "me/model"
WEIGHTS = os.urandom(3_000_000)


def safetensors_file() -> bytes:
    """Two tensors, one of them 3 MB."""
    header = {
        "__metadata__": {"format": "pt"},
        "large": {"dtype": "F32", "shape": [750, 1000], "data_offsets": [0, 3_000_000]},
        "small": {"dtype": "F16", "shape": [4], "data_offsets": [3_000_000, 3_000_008]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + WEIGHTS + bytes(8)


def publish(api: HfApi, folder: Path) -> bytes:
    """A folder as one commit, and the same again, which changes nothing."""
    weights = safetensors_file()
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [test]\n---\n# A model\n")
    (folder / "sub").mkdir()
    (folder / "sub" / "config.json").write_text("{}")
    (folder / "empty.bin").write_bytes(b"")

    assert api.whoami()["name"] == "me"
    assert api.create_repo(REPO).repo_id == REPO
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    try:
        api.create_repo(REPO)
        raise AssertionError("created twice")
    except errors.HfHubHTTPError as error:
        assert error.response.status_code == 409

    first = api.upload_folder(repo_id=REPO, folder_path=folder, commit_message="all of it")
    again = api.upload_folder(repo_id=REPO, folder_path=folder)
    assert again.oid == first.oid
    assert api.model_info(REPO).sha == first.oid
    return weights


def look(api: HfApi, weights: bytes) -> None:
    tree = {entry.path: entry for entry in api.list_repo_tree(REPO, recursive=True, expand=True)}
    assert sorted(tree) == ["README.md", "empty.bin", "model.safetensors", "sub", "sub/config.json"]
    assert tree["model.safetensors"].last_commit.title == "all of it"
    flat = [entry.path for entry in api.list_repo_tree(REPO)]
    assert flat == ["README.md", "empty.bin", "model.safetensors", "sub"]
    assert [entry.path for entry in api.list_repo_tree(REPO, "sub")] == ["sub/config.json"]

    model, config = api.get_paths_info(REPO, ["model.safetensors", "sub/config.json", "nothing"])
    assert model.lfs.sha256 == sha256(weights).hexdigest()
    assert (model.size, config.size, config.lfs) == (len(weights), 2, None)

    info = api.model_info(REPO, files_metadata=True)
    assert (info.card_data.license, info.tags, info.private) == ("mit", ["test"], False)
    assert {one.rfilename: one.size for one in info.siblings}["model.safetensors"] == len(weights)
    assert dict(info.safetensors.parameters) == {"F32": 750_000, "F16": 4}
    assert api.file_exists(REPO, "README.md")
    assert not api.file_exists(REPO, "nothing")
    assert api.resolve_revision(REPO).resolved == info.sha
    assert [commit.title for commit in api.list_repo_commits(REPO)] == ["all of it", "initial commit"]


def download(api: HfApi, weights: bytes, folder: Path) -> None:
    path = huggingface_hub.hf_hub_download(REPO, "model.safetensors", cache_dir=folder / "one")
    assert Path(path).read_bytes() == weights
    everything = Path(huggingface_hub.snapshot_download(REPO, cache_dir=folder / "all"))
    assert (everything / "model.safetensors").read_bytes() == weights
    assert (everything / "sub" / "config.json").read_bytes() == b"{}"
    assert (everything / "empty.bin").read_bytes() == b""

    with HfFileSystem().open(f"{REPO}/model.safetensors", block_size=1 << 16) as file:
        file.seek(2_000_000)
        assert file.read(1000) == weights[2_000_000:2_001_000]
        file.seek(-5, os.SEEK_END)
        assert file.read() == weights[-5:]
    metadata = api.get_safetensors_metadata(REPO)
    assert metadata.parameter_count == {"F32": 750_000, "F16": 4}
    checked = api.verify_repo_checksums(REPO, local_dir=everything)
    assert (checked.checked_count, checked.mismatches, checked.missing_paths) == (4, [], [])


def propose(api: HfApi, folder: Path) -> None:
    """Pull requests by a commit and by a folder; one is merged, the other closed."""
    head = api.model_info(REPO).sha
    made = api.create_commit(
        REPO,
        [CommitOperationAdd("extra.bin", os.urandom(2_000_000)), CommitOperationDelete("sub/", is_folder=True)],
        commit_message="a proposal",
        commit_description="more of it",
        create_pr=True,
        parent_commit=head,
    )
    assert (made.pr_num, made.pr_revision) == (1, "refs/pr/1")
    paths = {entry.path for entry in api.list_repo_tree(REPO, revision="refs/pr/1", recursive=True)}
    assert paths == {"README.md", "empty.bin", "model.safetensors", "extra.bin"}
    assert api.model_info(REPO).sha == head
    assert [commit.commit_id for commit in api.list_repo_commits(REPO, revision="refs/pr/1")][:2] == [made.oid, head]
    assert [ref.ref for ref in api.list_repo_refs(REPO, include_pull_requests=True).pull_requests] == ["refs/pr/1"]

    details = api.get_discussion_details(REPO, 1)
    assert (details.title, details.status, details.author) == ("a proposal", "open", "me")
    assert [event.type for event in details.events] == ["comment", "commit"]
    assert details.events[0].content == "more of it"
    assert api.comment_discussion(REPO, 1, "good").content == "good"

    (folder / "note.txt").write_text("x")
    api.upload_folder(repo_id=REPO, folder_path=folder, create_pr=True, commit_message="another", path_in_repo="notes")
    assert [(one.num, one.is_pull_request) for one in api.get_repo_discussions(REPO)] == [(2, True), (1, True)]
    assert api.change_discussion_status(REPO, 2, "closed").new_status == "closed"
    assert [one.num for one in api.get_repo_discussions(REPO, discussion_status="open")] == [1]

    api.merge_pull_request(REPO, 1)
    assert api.get_discussion_details(REPO, 1).merge_commit_oid == api.model_info(REPO).sha
    assert api.file_exists(REPO, "extra.bin")
    assert not api.file_exists(REPO, "sub/config.json")


def branch(api: HfApi) -> None:
    api.create_branch(REPO, branch="side")
    api.create_tag(REPO, tag="v1")
    api.upload_file(path_or_fileobj=b"on the side", path_in_repo="a.txt", repo_id=REPO, revision="side")
    assert api.file_exists(REPO, "a.txt", revision="side")
    assert not api.file_exists(REPO, "a.txt", revision="v1")
    api.delete_repo(REPO)
    assert not api.repo_exists(REPO)


def main() -> None:
    logging.captureWarnings(True)
    api = HfApi()
    with TemporaryDirectory() as one, TemporaryDirectory() as two, TemporaryDirectory() as three:
        weights = publish(api, Path(one))
        look(api, weights)
        download(api, weights, Path(two))
        propose(api, Path(three))
    branch(api)
    print(json.dumps({"uploaded": len(weights) + 2_000_000}))


if __name__ == "__main__":
    main()
