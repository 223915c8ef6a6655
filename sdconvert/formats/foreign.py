"""Files that are no checkpoints but carry a checkpoint's name: what they are, and what to do."""

from __future__ import annotations

from fnmatch import fnmatchcase

from ..errors import SdconvertError, UnreadableError, UnsupportedError
from ..source import Folder

_MAGICS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"version https://git-lfs", "is a Git LFS pointer, not the file itself. Run `git lfs pull`, or download it"),
    (0, b"GGUF", "is a GGUF model. Convert it with llama.cpp's tools"),
    (0, b"ggml", "is a GGML model. Convert it with llama.cpp's tools"),
    (0, b"lmgg", "is a GGML model. Convert it with llama.cpp's tools"),
    (0, b"tjgg", "is a GGML model. Convert it with llama.cpp's tools"),
    (0, b"\x89HDF\r\n\x1a\n", "is an HDF5 file, such as a Keras model. Load it with Keras or h5py"),
    (0, b"\x93NUMPY", "is a numpy array (.npy). Load it with numpy.load(allow_pickle=False)"),
    (0, b"7z\xbc\xaf\x27\x1c", "is a 7z archive. Unpack it first"),
    (0, b"Rar!", "is a RAR archive. Unpack it first"),
    (0, b"\xfd7zXZ", "is an xz stream. Unpack it first"),
    (0, b"BZh", "is a bzip2 stream. Unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "is a Zstandard stream. Unpack it first"),
    (0, b"\x1f\x9d", "is a compress (.Z) stream. Unpack it first"),
    (0, b"x\x9c", "is a zlib stream, such as joblib writes. Unpack it first"),
    (0, b"\x89PNG", "is a PNG image"),
    (0, b"\xff\xd8\xff", "is a JPEG image"),
    (0, b"%PDF", "is a PDF document"),
    (0, b"\x7fELF", "is a program or library"),
    (0, b"#!", "is a script"),
    (4, b"TFL3", "is a TensorFlow Lite model"),
    (4, b"PTMF", "is a TorchScript file of PyTorch Mobile in flatbuffers. Save it without _use_flatbuffer"),
    (0, b"PYTORCH1", "was saved by a pre-release of torch that no version reads"),
    (0, b"\x06\x00\x00\x00", "is a CTranslate2 model"),
    (0, b"\x08\x03", "looks like an ONNX or protobuf file, not a torch checkpoint"),
    (0, b"\x08\x07", "looks like an ONNX or protobuf file, not a torch checkpoint"),
    (0, b"\x08\x08", "looks like an ONNX or protobuf file, not a torch checkpoint"),
)


def named(head: bytes, nbytes: int) -> SdconvertError:
    """The error that says what a file is instead of a checkpoint; `head` is its first 512 bytes."""
    if nbytes == 0:
        return UnreadableError("is empty. Download or copy it again")
    for at, magic, what in _MAGICS:
        if head[at : at + len(magic)] == magic:
            return UnsupportedError(what)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:1] == b"<":
        return UnreadableError("is a web page, not a checkpoint: the download failed or wanted a login")
    if text[:1] in (b"{", b"["):
        return UnreadableError("is a JSON file, not a checkpoint")
    if not head.strip(b"\0"):
        return UnreadableError("begins with zeros only: the download or copy did not finish")
    if all(byte in b"\t\r\n\f" or 0x20 <= byte < 0x7F for byte in head):
        return UnreadableError("is a text file, not a checkpoint")
    return UnreadableError(f"is not a checkpoint that is known here; it begins with {head[:8].hex(' ')}")


def named_directory(folder: Folder) -> SdconvertError:
    """The error that says what a directory holds that is not read here."""

    def there(pattern: str) -> bool:
        return any(fnmatchcase(name, pattern) for name in folder.files)

    if inside := _below(folder, ".metadata"):
        what = f"a directory around torch.distributed checkpoints (DCP). Give the one that you want: {inside}"
    elif inside := _below(folder, "latest"):
        what = f"a directory around DeepSpeed checkpoints. Give the one that you want: {inside}"
    elif there("latest") or there("global_step*"):
        what = "a DeepSpeed directory without its *_model_states.pt. Copy or download it again"
    elif there("saved_model.pb"):
        what = "a TensorFlow SavedModel"
    elif there("*.pt") or there("*.pth") or there("*.bin") or there("*.ckpt"):
        what = "a directory with checkpoints in it. Give one of the files"
    else:
        what = "a directory without a checkpoint that is known here"
    return UnsupportedError(f"is {what}")


def _below(folder: Folder, name: str) -> str:
    """The directories in a folder that hold a file called `name`, as text; "" when none does."""
    found = [path.removesuffix(f"/{name}") for path in folder.files if path.endswith(f"/{name}")]
    return ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
