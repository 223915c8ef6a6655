"""``sdconvert push SOURCE REPO_ID``."""

from __future__ import annotations

import argparse

from ..hub import push
from . import conversion

NAME = "push"
HELP = "convert, verify, and publish on the Hub in one commit"
DESCRIPTION = (
    "Write the weights of a checkpoint to a repository of the Hub as safetensors, in one commit or one pull request, "
    "with the proof of what they are: where they are from, digests, and the command that checks them. "
    "SOURCE may be on the Hub itself (hf://owner/name[@revision][/path])."
)
EXAMPLES = (
    ("push model.pt me/model", "a new repository, or a commit to it"),
    ("push model.pt me/model --dry-run", "what would be sent, with sizes and digests"),
    ("push hf://org/name org/name --create-pr", "safetensors beside somebody's pickle, as a pull request"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A conversion's, and where it goes."""
    parser.add_argument("source", metavar="SOURCE", help="the checkpoint: a file, a directory, a URL")
    parser.add_argument("repo_id", metavar="REPO_ID", help="the repository, owner/name; it is made if it is not there")
    where = parser.add_argument_group("where it goes")
    where.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    where.add_argument("--private", action="store_true", help="make a new repository a private one")
    where.add_argument("--revision", metavar="BRANCH", help="the branch to commit to (default: main)")
    where.add_argument(
        "--path-in-repo", metavar="PATH", default="", help="a directory, or a name that ends in .safetensors"
    )
    where.add_argument("--commit-message", metavar="TEXT", help="title of the commit or pull request")
    where.add_argument("--commit-description", metavar="TEXT", help="what to say before the proof")
    where.add_argument("--license", metavar="L", help="license of a new repository's card, such as mit")
    where.add_argument("--base-model", metavar="REPO", help="base model of a new repository's card")
    where.add_argument(
        "--delete-original",
        action="store_true",
        help="remove the files that were converted in the same commit; only if SOURCE is in REPO_ID, and it is yours",
    )
    where.add_argument(
        "--force-public", action="store_true", help="publish openly what came from a private or gated repository"
    )
    where.add_argument("--dry-run", action="store_true", help="convert and say what would be sent, send nothing")
    conversion.add_token(where)
    conversion.add_selection(parser)
    output = parser.add_argument_group("what is written")
    conversion.add_output(output)
    conversion.add_metadata(output)


def run(args: argparse.Namespace) -> int:
    """Push, and print what was done."""
    done = push(
        args.source,
        args.repo_id,
        create_pr=args.create_pr,
        private=args.private,
        revision=args.revision,
        path_in_repo=args.path_in_repo,
        max_shard_size=args.max_shard_size,
        commit_message=args.commit_message,
        commit_description=args.commit_description,
        token=args.token,
        dry_run=args.dry_run,
        delete_original=args.delete_original,
        license=args.license,
        base_model=args.base_model,
        force_public=args.force_public,
        key=args.key,
        names=conversion.names(args),
        dtype=args.dtype,
        dequantize=args.dequantize,
        densify=args.densify,
        metadata=dict(args.metadata),
        threads=args.threads,
        limits=conversion.limits(args),
        progress=conversion.bar(args),
    )
    conversion.show(args, done)
    return 0
