"""What a push does, refuses, finds again and says; by the real client in this process, over LFS."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file
from safetensors.torch import save as to_bytes

import sdconvert
from sdconvert.errors import ChoiceError, OutputError, SdconvertError, UnreadableError
from tests.hub.conftest import Push, save
from tests.hub_server import HubServer

# The client sends LFS parts by a parameter that its HTTP library wants to be called otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def theirs(here: HubServer, state_file: Path) -> HubServer:
    """A hub on which somebody else has a pickled model."""
    here.add_repo("you/model", {"pytorch_model.bin": state_file.read_bytes(), "config.json": b"{}"})
    return here


def log_of(hub: HubServer, method: str) -> int:
    """Requests that change something: commits, new repositories, comments."""
    writing = ("hub.commit", "hub.create", "hub.edit", "cdn.put*", "hub.discuss", "hub.branch")
    return sum(hub.log.count(route, method) for route in writing)


class TestANewRepository:
    def test_it_has_the_weights_and_a_card_of_what_is_known(
        self, here: HubServer, push: Push, state_file: Path
    ) -> None:
        done = push(state_file, "me/model", license="mit", base_model="you/base")
        assert (done.outcome, done.created, done.private, done.number) == ("committed", True, False, None)
        card = here.read("me/model", "README.md").decode()
        assert card.startswith("---\nbase_model: you/base\nlicense: mit\n---\n\n# model\n")
        for known in (
            sha256(state_file.read_bytes()).hexdigest(),
            sha256(here.read("me/model", "model.safetensors")).hexdigest(),
            sdconvert.digest(state_file),
            "`pytorch_model.bin`",
        ):
            assert known in card
        assert str(state_file.parent) not in card
        assert done.digest == sdconvert.digest("hf://me/model")

    def test_nothing_is_invented(self, here: HubServer, push: Push, state_file: Path) -> None:
        push(state_file, "me/model")
        assert here.read("me/model", "README.md").decode().startswith("# model\n")

    def test_what_the_card_of_the_source_says_of_the_model_is_kept(
        self, here: HubServer, push: Push, state_file: Path
    ) -> None:
        front = b"---\nlicense: other\nlicense_name: ours\nlibrary_name: timm\nlanguage: [de]\ntags: [a]\n---\n# M\n"
        here.add_repo("you/model", {"pytorch_model.bin": state_file.read_bytes(), "README.md": front})
        push("hf://you/model", "me/copy")
        card = here.read("me/copy", "README.md").decode()
        assert card.startswith("---\nlanguage:\n- de\nlicense: other\nlicense_name: ours\n---\n")

    def test_one_commit_and_the_calls_that_it_takes(self, here: HubServer, push: Push, state_file: Path) -> None:
        push(state_file, "me/model")
        assert here.log.count("hub.commit") == 1
        assert [one.title for one in here.api().list_repo_commits("me/model")] == [
            "Add weights as safetensors",
            "initial commit",
        ]

    def test_private(self, here: HubServer, push: Push, state_file: Path) -> None:
        assert push(state_file, "me/model", private=True).private
        assert here.store.repos["me/model"].private

    def test_on_a_branch(self, here: HubServer, push: Push, state_file: Path) -> None:
        push(state_file, "me/model", revision="side")
        assert here.paths("me/model", "side") == ["README.md", "model.safetensors"]
        assert here.paths("me/model") == []

    @pytest.mark.parametrize("hostile", ["a`|<b>\n# @you", "x" * 2000])
    def test_names_from_the_file_are_only_names(
        self, here: HubServer, push: Push, tmp_path: Path, hostile: str
    ) -> None:
        shared = torch.randn(10)
        push(save(tmp_path / "a.pt", {"first": shared, hostile: shared}), "me/model")
        card = here.read("me/model", "README.md").decode()
        assert "<b>" not in card.replace("`", "").split("tied")[0]
        assert all(len(line) < 1000 and not line.startswith("# @") for line in card.splitlines())
        assert card.count("`") % 2 == 0


class TestOnesOwnRepository:
    def test_other_files_are_left_alone(self, here: HubServer, push: Push, state_file: Path) -> None:
        here.add_repo("me/model", {"config.json": b"{}", "README.md": b"# mine\n"})
        done = push(state_file, "me/model", commit_message="New weights", commit_description="Better.", license="mit")
        assert here.paths("me/model") == ["README.md", "config.json", "model.safetensors"]
        assert here.read("me/model", "README.md") == b"# mine\n"
        assert done.warnings == ("the repository has its own card; --license and --base-model were not written to it",)
        commit = here.api().list_repo_commits("me/model")[0]
        assert (commit.title, commit.message.partition("\n")[0]) == ("New weights", "Better.")

    def test_again_is_nothing_to_do(self, here: HubServer, push: Push, state_file: Path) -> None:
        here.add_repo("me/model", {"config.json": b"{}"})
        first = push(state_file, "me/model")
        before = log_of(here, "*")
        again = push(state_file, "me/model")
        assert (again.outcome, again.commit) == ("unchanged", first.commit)
        assert log_of(here, "*") == before

    def test_shards_and_their_index(self, here: HubServer, push: Push, state_file: Path) -> None:
        done = push(state_file, "me/model", max_shard_size=300_000)
        shards = [one.path for one in done.files if one.path.startswith("model-")]
        assert here.paths("me/model") == ["README.md", *shards, "model.safetensors.index.json"]
        tensors: dict[str, Any] = {}
        for shard in shards:
            tensors |= load(here.read("me/model", shard))
        state = torch.load(state_file)
        assert tensors.keys() == state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in tensors.items())
        code = "import huggingface_hub as h; print(sorted(h.get_safetensors_metadata('me/model').weight_map.items()))"
        seen = here.run(["-c", code], xet=False)
        assert seen.stdout.strip() == str(sorted((n, s) for s in shards for n in load(here.read("me/model", s))))

    def test_what_a_loader_would_mix_up_with_them_goes(self, here: HubServer, push: Push, state_file: Path) -> None:
        push(state_file, "me/model")
        sharded = push(state_file, "me/model", max_shard_size=300_000)
        assert sharded.deleted == ("model.safetensors",)
        assert "model.safetensors" not in here.paths("me/model")
        whole = push(state_file, "me/model")
        assert here.paths("me/model") == ["README.md", "model.safetensors"]
        assert set(whole.deleted) == {one.path for one in sharded.files}

    @pytest.mark.parametrize(
        ("path_in_repo", "path"),
        [("", "model.safetensors"), ("sub/dir", "sub/dir/model.safetensors"), ("a/w.safetensors", "a/w.safetensors")],
    )
    def test_where_in_it(self, here: HubServer, push: Push, state_file: Path, path_in_repo: str, path: str) -> None:
        here.add_repo("me/model", {"config.json": b"{}"})
        assert [one.path for one in push(state_file, "me/model", path_in_repo=path_in_repo).files] == [path]
        assert sdconvert.verify(state_file, f"hf://me/model/{path}").equal

    def test_the_flags_of_a_conversion(self, here: HubServer, push: Push, tmp_path: Path) -> None:
        weights = {"module.a": torch.randn(5), "module.b": torch.randn(5)}
        source = save(tmp_path / "a.pt", {"gen": weights, "dis": {name: -tensor for name, tensor in weights.items()}})
        with pytest.raises(ChoiceError, match="--key gen"):
            push(source, "me/model")
        assert "me/model" not in here.store.repos
        names = sdconvert.Names(strip_prefix="auto", exclude=("*.b",))
        push(source, "me/model", key="gen", names=names, dtype="float16", metadata={"who": "me"})
        found = load(here.read("me/model", "model.safetensors"))
        assert {name: tensor.dtype for name, tensor in found.items()} == {"a": torch.float16}
        assert "cast to float16" in here.read("me/model", "README.md").decode()


class TestNames:
    @pytest.mark.parametrize(
        ("path", "new"),
        [
            ("pytorch_model.bin", "model.safetensors"),
            ("pytorch_model.fp16.bin", "model.fp16.safetensors"),
            ("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.safetensors"),
            ("adapter_model.bin", "adapter_model.safetensors"),
            ("deep/er/v1-5.ckpt", "deep/er/v1-5.safetensors"),
        ],
    )
    def test_beside_the_original(self, here: HubServer, push: Push, state_file: Path, path: str, new: str) -> None:
        here.add_repo("you/model", {path: state_file.read_bytes()})
        done = push(f"hf://you/model/{path}", "you/model", create_pr=True)
        assert [one.path for one in done.files] == [new]
        assert sdconvert.review(1, "you/model").equal

    def test_elsewhere_it_is_the_model(self, here: HubServer, push: Push, state_file: Path) -> None:
        here.add_repo("you/model", {"deep/v1-5.ckpt": state_file.read_bytes()})
        push("hf://you/model/deep/v1-5.ckpt", "me/copy")
        assert here.paths("me/copy") == ["README.md", "model.safetensors"]

    def test_a_repository_with_several_says_which(self, here: HubServer, push: Push, state_file: Path) -> None:
        here.add_repo("you/model", {"a.ckpt": state_file.read_bytes(), "b.ckpt": state_file.read_bytes()})
        with pytest.raises(ChoiceError, match="holds several checkpoints") as caught:
            push("hf://you/model", "you/model", create_pr=True)
        assert [one.key for one in caught.value.candidates] == ["hf://you/model/a.ckpt", "hf://you/model/b.ckpt"]
        assert str(caught.value).startswith("hf://you/model: holds several checkpoints")


class TestPullRequests:
    def test_it_is_found_again_without_converting(self, theirs: HubServer, push: Push) -> None:
        first = push("hf://you/model", "you/model", create_pr=True)
        theirs.log.clear()
        again = push("hf://you/model", "you/model", create_pr=True)
        assert (again.outcome, again.number, again.url, again.commit) == ("exists", 1, first.url, first.commit)
        assert (log_of(theirs, "*"), len(theirs.store.repos["you/model"].discussions)) == (0, 1)

    def test_another_request_is_another_one(self, theirs: HubServer, push: Push) -> None:
        push("hf://you/model", "you/model", create_pr=True)
        second = push("hf://you/model", "you/model", create_pr=True, max_shard_size=300_000)
        assert (second.outcome, second.number) == ("proposed", 2)

    def test_that_of_somebody_else_is_not_repeated_when_its_bytes_are_the_same(
        self, theirs: HubServer, push: Push, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        push("hf://you/model", "you/model", create_pr=True, token=theirs.stranger_token)
        done = push("hf://you/model", "you/model", create_pr=True)
        assert (done.outcome, done.number) == ("exists", 1)
        assert done.report is not None

    def test_that_of_somebody_else_with_other_bytes_is_pointed_out(self, theirs: HubServer, push: Push) -> None:
        title = "Adding `safetensors` variant of this model"
        api = theirs.api(theirs.stranger_token)
        bad = to_bytes({"a.weight": torch.zeros(300, 300)})
        api.upload_file(
            path_or_fileobj=bad, path_in_repo="model.safetensors", repo_id="you/model", create_pr=True,
            commit_message=title,
        )  # fmt: skip
        done = push("hf://you/model", "you/model", create_pr=True)
        assert (done.outcome, done.number) == ("proposed", 2)
        assert done.warnings == ("pull request 1 of stranger has other bytes under the same names",)

    @pytest.mark.parametrize("how", ["closed", "moved on"])
    def test_an_old_one_does_not_count(self, theirs: HubServer, push: Push, how: str) -> None:
        push("hf://you/model", "you/model", create_pr=True)
        if how == "closed":
            theirs.api(theirs.token).change_discussion_status("you/model", 1, "closed")
        else:
            theirs.add_files("you/model", {"config.json": b'{"new": 1}'})
        assert push("hf://you/model", "you/model", create_pr=True).number == 2

    def test_only_on_the_revision_that_was_converted(self, theirs: HubServer, push: Push) -> None:
        old = theirs.api().model_info("you/model").sha
        theirs.add_files("you/model", {"config.json": b'{"new": 1}'})
        with pytest.raises(OutputError, match="Weights go beside the files that they were converted from"):
            push(f"hf://you/model@{old}", "you/model", create_pr=True)
        assert theirs.store.repos["you/model"].discussions == []

    def test_what_it_says(self, theirs: HubServer, push: Push, state_file: Path) -> None:
        head = theirs.api().model_info("you/model").sha
        done = push("hf://you/model", "you/model", create_pr=True, commit_description="Please take it.")
        (said,) = (
            event.content
            for event in theirs.api().get_discussion_details("you/model", 1).events
            if event.type == "comment"
        )
        assert said == done.description
        assert said.startswith(
            "Please take it.\n\nThis adds `model.safetensors`: the weights of the source, bit for bit"
        )
        for known in (
            f"hf://you/model@{head}",
            sha256(state_file.read_bytes()).hexdigest(),
            sha256(theirs.read("you/model", "model.safetensors", "refs/pr/1")).hexdigest(),
            sdconvert.digest(state_file),
            "No file is removed.",
            "sdconvert verify --pr 1 you/model",
        ):
            assert known in said

    def test_what_is_there_already_is_not_offered(self, theirs: HubServer, push: Push) -> None:
        theirs.add_files("you/model", {"model.safetensors": to_bytes({"a.weight": torch.zeros(3)})})
        for source in ("hf://you/model", "hf://you/model/pytorch_model.bin"):
            with pytest.raises(ChoiceError, match=r"you/model has model\.safetensors already"):
                push(source, "you/model", create_pr=True)
        assert push("hf://you/model/pytorch_model.bin", "you/model", create_pr=True, path_in_repo="new").number == 1

    def test_without_a_repository_there_is_none(self, here: HubServer, push: Push, state_file: Path) -> None:
        with pytest.raises(OutputError, match="no repository you/nothing to which a pull request could be made"):
            push(state_file, "you/nothing", create_pr=True)

    def test_another_branch_than_main(self, theirs: HubServer, push: Push) -> None:
        with pytest.raises((ChoiceError, SdconvertError)):
            push("hf://you/model", "you/model", create_pr=True, revision="side")


class TestForWhomItIs:
    @pytest.mark.parametrize("kind", [{"private": True}, {"gated": "auto"}], ids=["private", "gated"])
    def test_what_not_everybody_may_read_is_not_made_public(
        self, here: HubServer, push: Push, state_file: Path, kind: dict[str, Any]
    ) -> None:
        here.add_repo("me/secret", {"pytorch_model.bin": state_file.read_bytes()}, **kind)
        here.add_repo("me/open", {"config.json": b"{}"})
        for target in ("me/open", "me/new"):
            with pytest.raises(ChoiceError, match=f"me/secret is .*, and {target} (is|would be) public"):
                push("hf://me/secret", target)
        assert "me/new" not in here.store.repos
        assert here.log.count("cdn.*") == 0
        assert push("hf://me/secret", "me/hidden", private=True).private
        assert push("hf://me/secret", "me/new", force_public=True).created

    def test_in_its_own_repository_it_stays_what_it_is(self, here: HubServer, push: Push, state_file: Path) -> None:
        here.add_repo("me/secret", {"pytorch_model.bin": state_file.read_bytes()}, private=True)
        push("hf://me/secret", "me/secret")
        assert here.paths("me/secret") == ["model.safetensors", "pytorch_model.bin"]

    def test_private_is_not_promised_of_a_public_one(self, here: HubServer, push: Push, state_file: Path) -> None:
        here.add_repo("me/open", {"config.json": b"{}"})
        with pytest.raises(ChoiceError, match="--private is for a new repository"):
            push(state_file, "me/open", private=True)


class TestDeletingTheOriginal:
    @pytest.fixture
    def mine(self, here: HubServer, state_file: Path) -> HubServer:
        here.add_repo("me/model", {"pytorch_model.bin": state_file.read_bytes(), "config.json": b"{}"})
        return here

    def test_in_the_same_commit(self, mine: HubServer, push: Push) -> None:
        assert push("hf://me/model", "me/model", delete_original=True).deleted == ("pytorch_model.bin",)
        assert mine.paths("me/model") == ["config.json", "model.safetensors"]
        assert len(mine.api().list_repo_commits("me/model")) == 3

    def test_never_by_default(self, mine: HubServer, push: Push) -> None:
        assert push("hf://me/model", "me/model").deleted == ()
        assert "pytorch_model.bin" in mine.paths("me/model")

    def test_shards_go_with_their_index(self, here: HubServer, push: Push) -> None:
        import io

        shards, weight_map = {}, {}
        for number in (1, 2):
            file = io.BytesIO()
            torch.save({f"w{number}": torch.randn(100)}, file)
            name = f"pytorch_model-0000{number}-of-00002.bin"
            shards[name], weight_map[f"w{number}"] = file.getvalue(), name
        index = json.dumps({"metadata": {"total_size": 800}, "weight_map": weight_map}).encode()
        here.add_repo("me/model", {**shards, "pytorch_model.bin.index.json": index})
        done = push("hf://me/model", "me/model", delete_original=True)
        assert set(done.deleted) == {*shards, "pytorch_model.bin.index.json"}
        assert here.paths("me/model") == [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        ]

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"create_pr": True}, "not for pull requests"),
            ({"dtype": "float16"}, "would lose what is only in the original: values as they were"),
            ({"names": sdconvert.Names(exclude=("b.*",))}, "would lose what is only in the original"),
        ],
    )
    def test_not_when_something_would_be_lost(
        self, mine: HubServer, push: Push, options: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(ChoiceError, match=says):
            push("hf://me/model", "me/model", delete_original=True, **options)
        assert mine.paths("me/model") == ["config.json", "pytorch_model.bin"]

    def test_not_a_training_checkpoint(self, here: HubServer, push: Push, tmp_path: Path) -> None:
        path = save(tmp_path / "last.ckpt", {"state_dict": {"a": torch.randn(5)}, "epoch": 3})
        here.add_repo("me/model", {"last.ckpt": path.read_bytes()})
        with pytest.raises(ChoiceError, match=r"epoch \(not weights\)"):
            push("hf://me/model/last.ckpt", "me/model", delete_original=True)

    def test_not_what_came_from_elsewhere(self, mine: HubServer, push: Push, state_file: Path) -> None:
        for source, target in ((state_file, "me/model"), ("hf://me/model", "me/other")):
            with pytest.raises(ChoiceError, match="from the same repository"):
                push(source, target, delete_original=True)


class TestDryRun:
    @pytest.mark.parametrize("options", [{}, {"create_pr": True}], ids=["commit", "pull request"])
    def test_it_says_what_would_be_sent_and_sends_nothing(
        self, theirs: HubServer, push: Push, options: dict[str, Any]
    ) -> None:
        target = "you/model" if options else "me/copy"
        dry = push("hf://you/model", target, dry_run=True, **options)
        assert log_of(theirs, "*") == 0
        assert (dry.outcome, dry.commit) == ("dry-run", "")
        done = push("hf://you/model", target, **options)
        assert (dry.files, dry.digest, dry.title, dry.created) == (done.files, done.digest, done.title, done.created)

    def test_it_needs_no_token(self, here: HubServer, state_file: Path) -> None:
        assert sdconvert.push(state_file, "me/model", dry_run=True).outcome == "dry-run"
        with pytest.raises(OutputError, match="publishing needs a token: hf auth login, or set HF_TOKEN"):
            sdconvert.push(state_file, "me/model")


class TestRefusals:
    def test_a_token_that_only_reads(self, here: HubServer, push: Push, state_file: Path) -> None:
        here.add_repo("me/model", {"config.json": b"{}"})
        with pytest.raises(OutputError, match="the Hub refused"):
            push(state_file, "me/model", token=here.read_token)

    def test_a_token_of_nobody(self, here: HubServer, push: Push, state_file: Path) -> None:
        with pytest.raises(OutputError) as caught:
            push(state_file, "me/model", token="hf_" + "a" * 34)
        assert "hf_aaaa" not in str(caught.value)

    def test_a_source_that_is_not_there(self, here: HubServer, push: Push, tmp_path: Path) -> None:
        with pytest.raises(UnreadableError, match="cannot be opened"):
            push(tmp_path / "nothing.pt", "me/model")
        with pytest.raises(UnreadableError, match="no such repository on the Hub"):
            push("hf://you/nothing", "me/model")
        assert here.store.repos == {}

    @pytest.mark.parametrize("repo", ["model", "me/a/b", "/model", "me/"])
    def test_a_name_that_is_none(self, here: HubServer, push: Push, state_file: Path, repo: str) -> None:
        with pytest.raises(SdconvertError):
            push(state_file, repo)

    @pytest.mark.parametrize("path", ["../up", "a//b", "a/./b"])
    def test_a_place_that_is_none(self, here: HubServer, push: Push, state_file: Path, path: str) -> None:
        with pytest.raises(ChoiceError, match="is no path in a repository"):
            push(state_file, "me/model", path_in_repo=path)

    def test_a_damaged_source_makes_no_repository(self, here: HubServer, push: Push, tmp_path: Path) -> None:
        path = save(tmp_path / "a.pt", {"a": torch.randn(1000)})
        data = bytearray(path.read_bytes())
        data[-2000] ^= 1
        path.write_bytes(data)
        with pytest.raises(UnreadableError):
            push(path, "me/model")
        assert here.store.repos == {}


class TestFilesInArchives:
    @pytest.fixture
    def archive(self, state_file: Path, tmp_path: Path) -> Path:
        with zipfile.ZipFile(tmp_path / "all.zip", "w") as file:
            file.write(state_file, "deep/m.pt")
        return tmp_path / "all.zip"

    def test_on_this_machine(self, here: HubServer, push: Push, archive: Path) -> None:
        push(f"zip://deep/m.pt::{archive}", "me/model")
        card = here.read("me/model", "README.md").decode()
        assert "`zip://deep/m.pt::all.zip`" in card
        assert str(archive.parent) not in card

    def test_for_whom_it_is_counts_here_too(self, here: HubServer, push: Push, archive: Path) -> None:
        here.add_repo("me/secret", {"all.zip": archive.read_bytes()}, private=True)
        source = "zip://deep/m.pt::hf://me/secret/all.zip"
        with pytest.raises(ChoiceError, match="me/secret is private"):
            push(source, "me/model")
        with pytest.raises(ChoiceError, match="name what is on the Hub by itself"):
            push("simplecache::hf://me/secret/all.zip", "me/model")
        with pytest.raises(ChoiceError, match="--delete-original"):
            push(source, "me/secret", delete_original=True)
        done = push(source, "me/model", private=True)
        assert done.digest == sdconvert.digest("hf://me/model")
        assert here.api(here.token).model_info("me/secret").sha in here.read("me/model", "README.md").decode()


def test_nothing_is_left_on_this_machine(
    here: HubServer, push: Push, state_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    push(state_file, "me/model")
    with pytest.raises(SdconvertError):
        push(state_file, "you/not-mine")
    assert list(tmp_path.iterdir()) == []


Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def meanwhile(what: Callable[[], object]) -> Bar:
    """A progress bar that does `what` when the copying begins."""

    @contextmanager
    def bar(label: str, nbytes: int) -> Any:
        if label == "copying":
            what()
        yield lambda count: None

    return bar


class TestMeanwhile:
    def test_a_commit_of_somebody_else(self, here: HubServer, push: Push, state_file: Path) -> None:
        here.add_repo("me/model", {"config.json": b"{}"})
        with pytest.raises(OutputError, match="somebody changed the repository since it was looked at"):
            push(state_file, "me/model", progress=meanwhile(lambda: here.add_files("me/model", {"a.txt": b"a"})))
        assert here.paths("me/model") == ["a.txt", "config.json"]
        push(state_file, "me/model")
        assert here.paths("me/model") == ["a.txt", "config.json", "model.safetensors"]

    def test_every_signed_address_expires(self, theirs: HubServer, push: Push) -> None:
        done = push("hf://you/model", "you/model", create_pr=True, progress=meanwhile(theirs.expire_urls))
        assert done.outcome == "proposed"
        assert sdconvert.review(1, "you/model").equal

    def test_the_source_on_this_machine(self, here: HubServer, push: Push, tmp_path: Path) -> None:
        """Digests are taken after the copy: they must be of the same file."""
        path = save(tmp_path / "a.pt", {"a": torch.randn(100)})

        @contextmanager
        def bar(label: str, nbytes: int) -> Any:
            if label == "hashing":
                save(path, {"a": torch.zeros(100)})
            yield lambda count: None

        with pytest.raises(UnreadableError, match="was changed while it was read"):
            push(path, "me/model", progress=bar)
        assert here.store.repos == {}

    def test_new_weights_under_a_pull_request(self, theirs: HubServer, push: Push, state_file: Path) -> None:
        new = {"pytorch_model.bin": state_file.read_bytes()[:-1]}
        with pytest.raises(OutputError, match="somebody changed the repository"):
            push(
                "hf://you/model", "you/model", create_pr=True,
                progress=meanwhile(lambda: theirs.add_files("you/model", new)),
            )  # fmt: skip
        assert theirs.store.repos["you/model"].discussions == []


def test_the_command_line(here: HubServer, state_file: Path, tmp_path: Path) -> None:
    argv = ["-m", "sdconvert", "push", str(state_file), "me/model"]
    dry = here.run([*argv, "--dry-run"], xet=False)
    assert (dry.returncode, "dry run, nothing was sent" in dry.stdout) == (0, True), dry.stderr
    assert "model.safetensors" in dry.stdout
    quiet = here.run([*argv, "--quiet", "--private", "--license", "mit"], token=here.token, xet=False)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    by_flag = here.run([*argv, "--json", "--token", f" {here.token} "], xet=False)
    assert json.loads(by_flag.stdout)["outcome"] == "unchanged"
    refused = here.run([*argv, "--token", "hf_a b"], xet=False)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    here.add_repo("you/model", {"config.json": b"{}"})
    theirs = [*argv[:-1], "you/model", "--debug", "--token", here.token]
    traced = here.run(theirs, xet=False)
    assert (traced.returncode, "Traceback" in traced.stderr) == (1, True)
    stored = tmp_path / "stored"
    (stored / "hf").mkdir(parents=True)
    (stored / "hf" / "token").write_text(f"{here.token}\n")
    kept = here.run([*argv, "--json"], extra={"HF_HOME": str(stored / "hf")}, xet=False)
    assert json.loads(kept.stdout)["outcome"] == "unchanged"
    got = here.run(
        ["-m", "sdconvert", "to-safetensors", "hf://me/model", "out.safetensors", "--revision", "main"],
        token=here.token, cwd=tmp_path,
    )  # fmt: skip
    assert got.returncode == 0, got.stderr
    assert load_file(tmp_path / "out.safetensors").keys() == torch.load(state_file).keys()
