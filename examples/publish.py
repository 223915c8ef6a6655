"""A pickled checkpoint as safetensors on the Hub; for somebody else's repository, as a pull request with its proof.

    HF_TOKEN=... python examples/publish.py examples/charlm.pt me/charlm
    HF_TOKEN=... python examples/publish.py hf://org/name org/name

The first makes the repository, or one commit on it. The second needs a token that reads; its weights are compared
with those of the branch once more, as anybody can who is asked to merge it.
"""

from __future__ import annotations

import sys

import sdconvert


def publish(source: str, repo_id: str) -> sdconvert.Publication:
    """Look at what would be sent, then send it. Nothing is published after an error."""
    theirs = source.startswith("hf://")
    plan = sdconvert.push(source, repo_id, create_pr=theirs, dry_run=True)
    for file in plan.files:
        print(f"to send: {file.path}, {file.nbytes:,} bytes, sha256 {file.sha256[:12]}")
    done = sdconvert.push(source, repo_id, create_pr=theirs)
    print(f"{done.outcome}: {done.url}")
    if done.number is None:
        assert sdconvert.verify(source, f"hf://{repo_id}@{done.commit}").equal
    else:
        assert sdconvert.review(done.number, repo_id).equal
    print("the weights there are those of the source, to the bit")
    return done


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    try:
        publish(sys.argv[1], sys.argv[2])
    except sdconvert.SdconvertError as error:
        raise SystemExit(f"error: {error}") from None
