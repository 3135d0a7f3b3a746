"""Links to nothing in a folder of files: an error, or a row that is dropped."""

import dataclasses

import pytest

from experiments.decontaminate_files import find_files
from phi4_jax.common.errors import DataError
from phi4_jax.data import files
from phi4_jax.data.files import ChangedFileError, UnreachableError
from phi4_jax.data.sources import JsonlSource
from phi4_jax.data.sources_folders import FolderSource


def test_a_link_to_nothing_is_said_to_be_one(tmp_path):
  (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
  with pytest.raises(DataError, match="a.txt is a link to what is not there. Mend it"):
    list(FolderSource(path=str(tmp_path)).documents())


@pytest.mark.parametrize(
  ("kind", "name"), [(FolderSource, "b.txt"), (JsonlSource, "b.jsonl")]
)
@pytest.mark.parametrize("end", ["", "/*"])
def test_a_link_to_nothing_is_a_row_that_can_be_dropped(tmp_path, kind, name, end):
  (tmp_path / name).write_bytes(b'{"text": "here"}\n')
  (tmp_path / f"a{name}").symlink_to(tmp_path / "gone")
  source = kind(path=f"{tmp_path}{end}", on_bad_row="drop")
  (alone,) = kind(path=str(tmp_path / name)).documents()
  dropped = []
  assert [d.text for d in source.documents(dropped.append)] == [alone.text]
  in_shards = []
  shards = source.shards()
  assert len(shards) == 2
  for shard in shards:
    in_shards += [d.text for d in shard.documents(dropped.append)]
  assert in_shards == [alone.text]
  assert [(row.id, row.reason) for row in dropped] == [(f"a{name}", "broken_link")] * 2
  assert "is a link to what is not there" in dropped[0].detail
  recipes = [source.recipe(), *(shard.recipe() for shard in shards)]
  assert len({str(recipe) for recipe in recipes[1:]}) == 2
  # What else stops is stopped at before anything is read, with the way out.
  strict = dataclasses.replace(source, on_bad_row="error")
  for read in (strict.shards, strict.recipe, lambda: list(strict.documents())):
    with pytest.raises(DataError, match=rf"a{name} is a link .*on_bad_row = 'drop'"):
      read()


def test_a_store_that_goes_away_has_no_broken_links(tmp_path):
  """A file that was there when the folder was listed is never dropped."""
  store = tmp_path / "store"
  (tmp_path / "folder").mkdir()
  store.mkdir()
  for name in ("a.txt", "b.txt"):
    (store / name).write_text(name)
    (tmp_path / "folder" / name).symlink_to(store / name)
  source = FolderSource(path=str(tmp_path / "folder"), on_bad_row="drop")
  shards, documents = source.shards(), source.documents()
  assert next(documents).text == "a.txt"
  store.rename(tmp_path / "elsewhere")
  for rest in (documents, *(shard.documents() for shard in shards)):
    with pytest.raises(UnreachableError, match="is a link to what is not there"):
      list(rest)


@pytest.mark.parametrize("end", ["", "/*"])
def test_a_link_to_what_cannot_be_looked_at_is_never_dropped(tmp_path, end):
  """What is behind it, nobody knows: the disk refuses to look."""
  (tmp_path / "b.txt").write_text("here")
  (tmp_path / "a.txt").symlink_to(tmp_path / ("long" * 100))
  source = FolderSource(path=f"{tmp_path}{end}", on_bad_row="drop")
  dropped = []
  for read in (
    source.shards,
    source.recipe,
    lambda: list(source.documents(dropped.append)),
  ):
    with pytest.raises(UnreachableError, match=r"a\.txt cannot be read: .*too long"):
      read()
  assert not dropped


@pytest.mark.parametrize("target", ["gone", "b.txt/below", "a.txt"])
def test_links_to_nothing_of_every_kind(tmp_path, target):
  (tmp_path / "b.txt").write_text("here")
  (tmp_path / "a.txt").symlink_to(tmp_path / target)
  source = FolderSource(path=str(tmp_path), on_bad_row="drop")
  dropped = []
  assert [d.text for d in source.documents(dropped.append)] == ["here"]
  assert [row.reason for row in dropped] == ["broken_link"]


def test_a_stamp_is_of_a_file_that_is_there(tmp_path, monkeypatch):
  path = tmp_path / "a.txt"
  path.write_text("here")
  stamp = files.take_stamp(str(path))
  assert stamp is not None and stamp[0] == 4
  assert files.take_stamp(f"file://{path}") == stamp
  assert files.take_stamp(str(tmp_path)) is None
  # It goes between any two looks at it.
  monkeypatch.setattr("os.path.isfile", lambda path: True)
  path.unlink()
  assert files.take_stamp(str(path)) is None


def test_a_link_that_is_mended_after_it_was_listed_is_never_dropped(tmp_path):
  (tmp_path / "b.txt").write_text("here")
  link = tmp_path / "a.txt"
  link.symlink_to(tmp_path / "gone")
  source = FolderSource(path=str(tmp_path), on_bad_row="drop")
  *_, links = source.shards()
  (tmp_path / "gone").write_text("back again")
  dropped = []
  with pytest.raises(ChangedFileError, match=r"a\.txt was a link to nothing when"):
    list(links.documents(dropped.append))
  assert not dropped


@pytest.mark.parametrize("pattern", ["a.jsonl", "*.jsonl", ""])
def test_decontaminate_names_a_link_that_cannot_be_looked_at(tmp_path, pattern):
  (tmp_path / "a.jsonl").symlink_to(tmp_path / ("long" * 100))
  with pytest.raises(UnreachableError, match=r"a\.jsonl cannot be read: .*too long"):
    find_files([str(tmp_path / pattern)], "train")
