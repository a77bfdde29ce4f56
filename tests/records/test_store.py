"""Turn records on disk."""

from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from a2tgpo_trl.records import SCHEMA, RecordStore, read_batches, read_turns


def row(step, batch, **columns):
    defaults = {
        name: {"int32": 0, "float": 0.0, "string": "", "list": [], "map": []}[str(kind).split("<")[0]]
        for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True)
    }
    return {**defaults, "step": step, "batch": batch, **columns}


@pytest.fixture
def store(tmp_path):
    return RecordStore(tmp_path / "run" / "turns", 2**30)


def test_round_trip(store, tmp_path):
    call = {"name": "search", "arguments": "{}", "result": "x", "failed": False, "seconds": None}
    rows = [
        row(0, 0, text="東京\x00\ud83d\ude00".encode("utf-8", "replace").decode(), calls=[call], rewards={"a": 1.5})
    ]
    rows += [row(0, 0, belief_before=None, stop_reason=None)]
    store.append(rows)
    assert store.next_batch() == 1
    store.append([row(4, 1)])
    table = read_turns(tmp_path / "run")
    assert table.schema.equals(SCHEMA) and table["step"].to_pylist() == [0, 0, 4]
    first, second, _ = table.to_pylist()
    assert first["text"] == rows[0]["text"] and first["calls"] == [call] and first["rewards"] == [("a", 1.5)]
    assert second["belief_before"] is None and second["stop_reason"] is None
    assert [part.num_rows for part in read_batches(tmp_path / "run")] == [2, 1]
    assert read_turns(tmp_path / "run", ["reward", "step"]).column_names == ["reward", "step"]
    assert not list(store.folder.glob("*.partial"))


def test_every_column_says_what_it_is():
    assert all(field.metadata[b"what"] for field in SCHEMA)


def test_resuming_drops_what_is_done_again(store):
    for batch, step in enumerate((0, 4, 8, 12)):
        store.append([row(step, batch)])
    assert store.drop_from(8) == 2
    assert [file.stem for file in store.files()] == ["00000000-0000000", "00000004-0000001"]
    assert store.next_batch() == 2
    assert store.drop_from(8) == 0


@pytest.mark.parametrize("room", [7, 8])
def test_records_stay_within_their_bounds(store, room):
    store.append([row(0, 0)])
    size = store.files()[0].stat().st_size
    store.max_bytes = room * size + size // 2
    for batch in range(1, 40):
        store.append([row(batch, batch)])
        assert len(store.files()) <= room
        assert store.files()[-1].stem == f"{batch:08d}-{batch:07d}"  # the newest stays
    kept = [int(file.stem[:8]) for file in store.files()]
    assert kept[0] == 0 and kept[-1] == 39 and len(kept) >= 4
    gaps = [later - earlier for earlier, later in pairwise(kept)]
    assert gaps == sorted(gaps, reverse=True)  # the past is thinner, and none of it is missing


def test_a_file_that_was_cut_off_is_not_there(store, tmp_path):
    store.append([row(0, 0)])
    (store.folder / "00000004-0000001.partial").write_bytes(b"PAR1")
    assert read_turns(tmp_path / "run").num_rows == 1 and store.next_batch() == 1


def test_a_batch_that_cannot_be_written_whole_is_not_there(store, monkeypatch):
    store.append([row(0, 0)])

    def write_half(table, file, **options):
        file.write_bytes(b"PAR1 and what the disk had room for")
        raise OSError("No space left on device")

    monkeypatch.setattr(pq, "write_table", write_half)
    with pytest.raises(OSError, match="No space left"):
        store.append([row(4, 1)])
    assert [file.stem for file in store.files()] == ["00000000-0000000"] and store.next_batch() == 1
    assert sum(batch.num_rows for batch in read_batches(store.folder.parent)) == 1


def test_a_file_that_goes_while_others_are_read(store, tmp_path):
    for batch in range(3):
        store.append([row(batch, batch)])
    batches = read_batches(tmp_path / "run")
    assert next(batches)["step"].to_pylist() == [0]
    store.files()[1].unlink()
    assert next(batches)["step"].to_pylist() == [2]


def test_bad_records(store, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no turn records"):
        read_turns(tmp_path / "run")
    store.append([row(0, 0)])
    pq.write_table(pa.table({"step": [1]}), store.folder / "00000001-0000001.parquet")
    with pytest.raises(ValueError, match=r"00000001-0000001\.parquet holds no turn records"):
        read_turns(tmp_path / "run")
    (store.folder / "00000001-0000001.parquet").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"00000001-0000001\.parquet holds no turn records"):
        read_turns(tmp_path / "run")


def test_records_of_before_a_column_was_added_are_read(store, tmp_path):
    store.append([row(0, 0)])
    (file,) = store.folder.glob("*.parquet")
    pq.write_table(pq.read_table(file).drop_columns(["turn_reward", "turn_rewards"]), file)
    store.append([row(1, 1, turn_reward=0.5, turn_rewards={"a": 0.5})])
    table = read_turns(tmp_path / "run")
    assert table["turn_reward"].to_pylist() == [None, 0.5]
    assert table["turn_rewards"].to_pylist() == [None, [("a", 0.5)]]
    assert read_turns(tmp_path / "run", ["step", "turn_reward"])["turn_reward"].to_pylist() == [None, 0.5]
    pq.write_table(pq.read_table(file).drop_columns(["text"]), file)  # which no version lacks
    with pytest.raises(ValueError, match="holds no turn records of this version"):
        read_turns(tmp_path / "run")
