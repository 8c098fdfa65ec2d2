"""Records of the project in files, changed as their writer would change them."""

from abcsearch.files import sealed, unsealed
from abcsearch.signing import signed


def rewrite(path, change, kind=None):
    """Changes the record in a JSON file, with a right checksum.

    Args:
        path: of the file.
        change: values to update it with, or a function that changes it in place.
        kind: of record, if it is to be signed as the user's; without, an older signature no longer fits.
    """
    record, _ = unsealed(path.read_text(encoding="utf-8"))
    change(record) if callable(change) else record.update(change)
    path.write_text(sealed(record if kind is None else signed(kind, record)), encoding="utf-8")


def aged(path):
    """Makes a JSON file one of an older version: without checksum and signature."""
    record, _ = unsealed(path.read_text(encoding="utf-8"))
    record.pop("signature", None)
    path.write_text(sealed(record).rpartition(',\n "checksum"')[0] + "\n}\n", encoding="utf-8")
