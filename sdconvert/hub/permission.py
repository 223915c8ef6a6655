"""What may be published where, and what may be removed: checked before anything is read or sent."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ChoiceError, OutputError
from ..names import Names
from .client import MAIN, Repository
from .provenance import Origin, Read, hub_paths


def check_target(
    repo: str, there: Repository | None, *, create_pr: bool, private: bool, revision: str | None, origin: Origin
) -> None:
    """Whether the repository can take what is asked of it. ChoiceError or OutputError when not."""
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ChoiceError(f"{repo}: is not of the form owner/name")
    if there is None:
        if create_pr:
            raise OutputError(f"there is no repository {repo} to which a pull request could be made, or it is private")
        return
    if create_pr and revision not in (None, MAIN):
        raise ChoiceError(f"--create-pr goes to {MAIN}, and --revision {revision} is another branch")
    if private and not there.private:
        raise ChoiceError(f"{repo} is there already, and public: --private is for a new repository")
    if origin.repository is not None and origin.repository.id == repo and origin.repository.commit != there.commit:
        raise OutputError(
            f"{origin.name} is at commit {origin.repository.commit}, {revision or MAIN} of {repo} at {there.commit}. "
            "Weights go beside the files that they were converted from: name that revision, or push to another"
        )


def check_new(repo: str, there: Repository | None, name: str, *, create_pr: bool, origin: Origin) -> None:
    """ChoiceError when a repository would be offered safetensors that it has, under the same name."""
    if not create_pr or there is None or origin.place is None or origin.place.repo != repo:
        return
    for path in (f"{name}.safetensors", f"{name}.safetensors.index.json"):
        if path in there.files:
            raise ChoiceError(
                f"{repo} has {path} already. sdconvert verify hf://{repo}/NAME-OF-THE-ORIGINAL hf://{repo}/{path} says "
                "whether it holds the same weights"
            )


def check_public(repo: str, there: Repository | None, *, private: bool, force: bool, origin: Origin) -> None:
    """ChoiceError when what not everybody may read would become public."""
    known = origin.repository
    if known is None or known.id == repo or not (known.private or known.gated) or force:
        return
    if there.private if there is not None else private:
        return
    what = "private" if known.private else "gated"
    raise ChoiceError(
        f"{known.id} is {what}, and {repo} {'is' if there else 'would be'} public. "
        "Push to a private repository (--private makes one), or say --force-public"
    )


def check_deletion(
    repo: str,
    there: Repository | None,
    origin: Origin,
    read: Read,
    owned: frozenset[str],
    *,
    create_pr: bool,
    changed: Sequence[str],
    names: Names,
) -> tuple[str, ...]:
    """What ``--delete-original`` removes. ChoiceError when the files are another's, or not all of them was taken."""
    if create_pr:
        raise ChoiceError("--delete-original is for your own repositories, not for pull requests")
    if origin.place is None or origin.inside or origin.place.repo != repo or there is None:
        raise ChoiceError("--delete-original removes what was converted from the same repository: give SOURCE as hf://")
    if owned and repo.partition("/")[0] not in owned:
        raise ChoiceError(f"--delete-original is for your own repositories, and {repo} is not one of them")
    if read.container.startswith("safetensors") or read.container == "sharded+safetensors":
        raise ChoiceError("--delete-original: the source is safetensors already")
    lost = list(read.leaves_out)
    lost += [f"values as they were (they are {', '.join(changed)})"] if changed else []
    lost += ["--include or --exclude"] if names.include or names.exclude else []
    if lost:
        raise ChoiceError(f"--delete-original would lose what is only in the original: {'; '.join(lost[:5])}")
    paths = hub_paths(origin.place, read)
    return tuple(path for path in paths if path in there.files and not path.endswith(".safetensors"))
