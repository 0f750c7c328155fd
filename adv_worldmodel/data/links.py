"""HDF5 files that lead out of themselves."""

from __future__ import annotations

import h5py
from h5py import h5d, h5l, h5o


def stored_elsewhere(file: h5py.File) -> str | None:
    """What in `file` is not stored at its own place in it, in words, or None; follows no link.

    Links, external storage and virtual data sets: HDF5 opens what they name wherever it lies, with
    the rights of whoever reads, so that a stranger's file would take in what only they can see. A
    link within the file counts too, since what it leads to can be a link again.
    """

    def look(name: bytes, link: h5l.LinkInfo) -> str | None:
        shown = repr(name.decode(errors="replace"))
        if link.type != h5l.TYPE_HARD:
            return f"{shown} is a link"
        item = h5o.open(file.id, name)  # h5py's own classes take four times as long
        if not isinstance(item, h5d.DatasetID):
            return None
        layout = item.get_create_plist()
        if layout.get_external_count() or layout.get_layout() == h5d.VIRTUAL:
            return f"{shown} lies in another file"
        return None

    root = file["/"]  # h5py closes it with its last name
    found: str | None = root.id.links.visit(look, info=True)
    return found
