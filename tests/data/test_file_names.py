"""Which folders are looked into for a data set."""

from __future__ import annotations

from pathlib import Path

from raykfold.data.file_names import subfolders


def test_subfolders_are_sorted_and_followed_through_links(tmp_path: Path) -> None:
    folder = tmp_path / "audio"
    for name in ("b", "a", ".hidden", "__MACOSX"):
        (folder / name).mkdir(parents=True)
    (folder / "file").touch()
    (folder / "elsewhere").symlink_to(tmp_path)
    (folder / "to itself").symlink_to(folder / "to itself")
    (folder / "nowhere").symlink_to(folder / "absent")
    assert [each.name for each in subfolders(folder)] == ["a", "b", "elsewhere"]
    assert subfolders(folder / "file") == subfolders(folder / "absent") == []
