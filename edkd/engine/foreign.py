"""Recognises files that are not checkpoints of torch, to say what they are and what to do."""

import pickle
import pickletools
import zipfile
from contextlib import suppress
from pathlib import Path

import torch

AGAIN = "copy or download it again"

_HEAD = 4096
"""Bytes that are read to recognise a file."""

_UNPACK = "unpack it, and give the file of weights in it"
_PAGE = f"is a web page, not the file behind it; {AGAIN}, with the link of the file itself"
_H5 = "is an HDF5 file, as Keras writes it; convert its weights to a state dict of torch"

_STARTS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself; run `git lfs pull`",
    b"\x1f\x8b": f"is compressed with gzip; {_UNPACK}",
    b"BZh": f"is compressed with bzip2; {_UNPACK}",
    b"\xfd7zXZ\x00": f"is compressed with xz; {_UNPACK}",
    b"\x28\xb5\x2f\xfd": f"is compressed with zstd; {_UNPACK}",
    b"7z\xbc\xaf\x27\x1c": f"is a 7z archive; {_UNPACK}",
    b"Rar!": f"is a RAR archive; {_UNPACK}",
    b"\x89HDF": _H5,
    b"\x93NUMPY": "is an array of NumPy; save a state dict with torch.save",
    b"GGUF": "is a GGUF file; give a state dict of torch",
    b"\x89PNG": "is a picture; give a file of weights",
    b"\xff\xd8\xff": "is a picture; give a file of weights",
    b"GIF8": "is a picture; give a file of weights",
    b"%PDF": "is a PDF document; give a file of weights",
}

_MAGIC = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)[2:]
_OLD_PICKLES = (b"(dp", b"(lp", b"ccollections\n", b"ccopy_reg\n")

_WEIGHTS = (".pth", ".pt", ".ckpt", ".tar", ".bin", ".safetensors", ".pkl")


def other_kind(path: Path) -> str:
    """What a file is if it is no checkpoint, and what to do; "" where it may be one.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD)

    if not head.strip(b"\0"):
        content = f"begins with {len(head)} zeros" if head else "is empty"
        return f"is damaged: it {content}; {AGAIN}"
    known = [reason for start, reason in _STARTS.items() if head.startswith(start)]
    if known:
        return known[0]
    if _is_other_pickle(head):
        return "is a pickle that torch.save did not write; save a state dict with torch.save"
    if _is_onnx(path, head):
        return "is an ONNX graph; give the state dict that it was exported from"
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if head[257:262] == b"ustar":
        return f"is a tar archive; {_UNPACK}"
    return _kind_of_text(head)


def is_safetensors(path: Path) -> bool:
    """Whether a file is in the format of safetensors: the length of a JSON text, and that text."""
    with open(path, "rb") as file:
        head = file.read(9)
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= length <= path.stat().st_size - 8


def is_whole_model(path: Path) -> bool:
    """Whether a file that torch.save wrote holds a module, not its state dict."""
    with suppress(Exception):  # damaged bytes can raise almost any
        return any(name.startswith("torch.nn.modules.") for name in _globals(path))
    return False


def _globals(path: Path) -> list[str]:
    """The classes and functions that a file names. None of them is imported."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            [member] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            pickles = [archive.read(member)]
        return _names_in(pickles[0])

    # The older format: a number, the version, facts about the machine, and then the content.
    names = []
    with open(path, "rb") as file:
        for _ in range(4):
            for opcode, argument, _place in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    names.append(str(argument).replace(" ", "."))
    return names


def _names_in(content: bytes) -> list[str]:
    return [
        str(argument).replace(" ", ".")
        for opcode, argument, _place in pickletools.genops(content)
        if opcode.name == "GLOBAL"
    ]


def _is_other_pickle(head: bytes) -> bool:
    """Whether a file begins like a pickle, and not with the number that torch.save writes first."""
    has_protocol = head[:1] == b"\x80" and head[1:2] <= bytes([pickle.HIGHEST_PROTOCOL])
    return head.startswith(_OLD_PICKLES) or (has_protocol and _MAGIC not in head[:40])


def _is_onnx(path: Path, head: bytes) -> bool:
    """By its name, or by its first fields: a small version number, and the name of a program."""
    has_producer = head[:1] == b"\x08" and head[2:3] == b"\x12" and head[4:11].isascii()
    return path.suffix.lower() == ".onnx" or has_producer


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            is_whole = archive.testzip() is None
    except Exception as error:  # damaged bytes can raise almost any
        reason = " ".join(str(error).split())
        if reason == "File is not a zip file":
            reason = "its end is missing"
        return f"is damaged: {reason}; {AGAIN}"

    folders = {name.split("/", 1)[-1] for name in names}
    if not is_whole:
        return f"is damaged: the checksum of its content is wrong; {AGAIN}"
    if "constants.pkl" in folders and any("/code/" in name for name in names):
        return (
            "is a TorchScript program; save its state dict with "
            "torch.save(torch.jit.load(FILE).state_dict(), ...)"
        )
    if "data.pkl" in folders:
        return ""
    return _kind_of_archive(names)


def _kind_of_archive(names: list[str]) -> str:
    if any("exported_program" in name or "archive_format" in name for name in names):
        return "is a program of torch.export; give the weights it was made from, as student_best"
    if names and all(name.endswith(".npy") for name in names):
        return "holds arrays of NumPy; save a state dict of tensors with torch.save"
    if any(name.endswith(".h5") for name in names):
        return _H5

    inside = [name for name in names if name.lower().endswith(_WEIGHTS)] or names
    shown = ", ".join(inside[:3])
    return f"is a zip archive ({shown}); {_UNPACK}"


def _kind_of_text(head: bytes) -> str:
    try:
        text = head.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # otherwise a character is cut at the end of the head
            return ""
        text = head[: error.start].decode("utf-8-sig").strip()

    if not all(letter.isprintable() or letter.isspace() for letter in text):
        return ""
    lower = text[:2000].lower()
    if lower.startswith(("<!doctype html", "<html")) or "<html" in lower:
        return _PAGE
    return f"is a text file ({text[:30]!r}); give a file that torch.save wrote"
