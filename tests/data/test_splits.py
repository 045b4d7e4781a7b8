from collections import Counter

import pytest

from perceivers.data.splits import (
    few_documents,
    given_splits,
    grouped_splits,
    hashed_splits,
    piece_of,
    pieces_apart,
    split_in,
    split_named,
)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *[(name, "train") for name in ("train", "Train", "TRAINING", "train_set", "trainset", "train2017", "x_train")],
        *[(name, "train") for name in ("Xtrain", "trainX", "seg_train", "train-clean-100", "wiki.train")],
        *[(name, "train") for name in ("trainval", "train_val", "VOC trainval", "trn", "y_trn")],
        *[(name, "validation") for name in ("Validate", "validate_images")],
        *[(name, "test") for name in ("tst", "x_tst")],
        *[
            (name, "validation")
            for name in ("val", "Valid", "validation", "dev", "dev-clean", "val2017", "01_val", "Eval")
        ],
        *[(name, "test") for name in ("holdout", "held_out", "Held-Out", "hold out", "news_heldout")],
        *[(name, "test") for name in ("test", "Testing", "test1", "t10k-images-idx3-ubyte", "y_test", "TestImages")],
        *[(name, None) for name in ("latest", "contest", "training_test", "evaluate", "a", "", "1")],
    ],
)
def test_words_that_people_use(name: str, split: str | None) -> None:
    assert split_named(name) == split


@pytest.mark.parametrize(
    ("name", "split"), [("val", "validation"), ("Testing", "test"), ("dev", "dev"), ("train", "train"), ("x", "x")]
)
def test_the_split_that_is_meant(name: str, split: str) -> None:
    assert split_in(name, ("train", "validation", "dev", "test")) == split


def test_a_name_can_have_to_be_the_word() -> None:
    assert [split_named(name, exact=True) for name in ("Train", "train_set", "seg_train", "x_train", "val2017")] == [
        "train",
        "train",
        None,
        None,
        "validation",
    ]


@pytest.mark.parametrize(
    ("paths", "splits"),
    [
        (["Training/0/a", "Training/1/b", "Test/0/c"], ["train", "train", "test"]),
        (["cat/train/a", "cat/test/b", "eel/train/c"], ["train", "test", "train"]),  # below the classes
        (["train/train/a", "train/car/b", "test/train/c"], ["train", "train", "test"]),  # a class called train
        (["train/train/a", "train/test/b", "car/train/c"], ["train", "test", "train"]),
        (["d/seg_train/x/a", "d/seg_test/y/b"], ["train", "test"]),
        (["wiki.train.txt", "wiki.valid.txt", "wiki.test.txt"], ["train", "validation", "test"]),
        (["x/train_1.png", "x/train_2.png", "x/test_1.png"], ["train", "train", "test"]),
        (["testing/a", "testing/b"], ["test", "test"]),
        (["Train.txt"], ["train"]),
    ],
)
def test_splits_that_names_give(paths: list[str], splits: list[str]) -> None:
    found, notes = given_splits(paths)
    assert found == splits
    assert notes[0].startswith("splits as the ")


@pytest.mark.parametrize(
    "paths",
    [["train/a", "car/b", "ship/c"], ["test.mid", "song.mid"], ["bullet_train/a", "steam_train/b"], ["a", "b"], []],
)
def test_names_that_give_none(paths: list[str]) -> None:
    assert given_splits(paths)[0] is None


@pytest.mark.parametrize(("paths", "named"), [(["train/a", "car/b"], "folder"), (["train.txt", "unseen.txt"], "file")])
def test_a_class_or_a_file_that_is_called_train_is_told(paths: list[str], named: str) -> None:
    assert given_splits(paths)[1] == [
        f"the {named} train lies beside others that name no split, so it is taken for none"
    ]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["train/a", "test/b", "extra/c"], "extra/c lies beside the folders test, train; move it into one of them"),
        (["train/a", "b"], "b lies beside the folders train; move it"),
        (["train/cat/a", "more/test/cat/b"], "the folders more/test, train name splits at different depths"),
        (["cat/train/a", "cat/test/b", "eel/c"], "eel/c lies beside the folders test, train; .*--split-by hash"),
        (["Train.txt", "Test.txt", "notes.txt"], r"notes\.txt lies beside the files Test, Train; move it"),
    ],
)
def test_half_given_splits_are_refused(paths: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        given_splits(paths)


# By a hash


def test_hashed_splits_have_their_shares() -> None:
    counts = Counter(hashed_splits([f"song {index}" for index in range(10_000)]))
    assert abs(counts["validation"] - 500) < 100
    assert abs(counts["test"] - 500) < 100


def test_hashed_splits_stay_when_others_come() -> None:
    names = [f"song {index}" for index in range(300)]
    before = dict(zip(names, hashed_splits(names), strict=True))
    more = [f"new {index}" for index in range(50)] + names
    after = dict(zip(more, hashed_splits(more), strict=True))
    assert all(after[name] == split for name, split in before.items())


@pytest.mark.parametrize("start", range(40))
@pytest.mark.parametrize("count", [3, 4, 7])
def test_three_names_fill_three_splits(start: int, count: int) -> None:
    splits = hashed_splits([f"song {start * 7 + index}" for index in range(count)])
    assert set(splits) == {"train", "validation", "test"}


def test_held_out_names_fill_training_as_well() -> None:
    held_out = [name for name in map(str, range(200)) if hashed_splits([name]) == ["test"]][:3]
    assert set(hashed_splits(held_out)) == {"train", "validation", "test"}
    assert hashed_splits([]) == []


PIECES = [f"piece{index}/take {take}.mid" for index in range(40) for take in (1, 2, 3)]


@pytest.mark.parametrize("by", ["piece", "folder"])
def test_groups_stay_together(by: str) -> None:
    splits, note = grouped_splits(PIECES, by)  # pyright: ignore[reportArgumentType]
    assert set(splits) == {"train", "validation", "test"}
    assert all(len(set(splits[start : start + 3])) == 1 for start in range(0, 120, 3))
    assert note == f"splits by a hash of the {by}, 40 of them: 90 % train, 5 % validation, 5 % test"
    assert pieces_apart(PIECES, splits) == []


def test_two_groups_are_no_three_splits() -> None:
    with pytest.raises(ValueError, match="--split-by folder: the names tell 2 folders apart, three splits need 3: a/1"):
        grouped_splits(["a/1", "a/2", "b/3"], "folder")


@pytest.mark.parametrize(
    ("names", "piece"),
    [
        (["Moonlight take1.mid", "moonlight_take_2.mid", "Moonlight (1).mid", "moonlight - Copy.mid"], "moonlight"),
        (["op9_v2.mid", "op9 (take 3).mid", "op9_performer_b.mid", "op9 live.mid", "op9_rec12.mid"], "op9"),
        (["bwv_846.mid"], "bwv_846"),
        (["op. 10 no. 1.mid"], "op. 10 no. 1"),
        (["fugue_1.mid", "fugue_2.mid"], "fugue"),
        (["chopin/etude/shi05.mid"], "chopin/etude/shi05"),
        (["train/etude/take1.mid", "test/etude/take2.mid"], "etude/"),
        (["rows.jsonl#1"], "rows.jsonl#1"),
        (["word_1984.txt"], "word_1984"),
        (["train/0.mid"], "train/0"),
        (["train/song 02.mid"], "train/song 02"),
        (["train/01 - take 1.mid", "train/01 - take 2.mid"], "train/01"),
        (["train/k545_1.mid", "test/K545 (2).mid"], "k545"),
        (["train/etude 1/a.mid"], "train/etude 1/a"),
    ],
)
def test_what_recordings_of_one_piece_have_in_common(names: list[str], piece: str) -> None:
    assert [piece_of(name) for name in names] == [piece] * len(names)


def test_recordings_of_one_piece_in_several_splits_are_told() -> None:
    names = ["etude_take1.mid", "etude_take2.mid", "fugue_take1.mid", "fugue_take2.mid"]
    assert pieces_apart(names, ["train", "test", "train", "train"]) == [
        "recordings of 1 piece seem to be in several splits, so held-out scores may flatter: "
        "etude_take1.mid (train) and etude_take2.mid (test); --split-by piece keeps names that are alike together"
    ]
    assert pieces_apart([f"book {index}" for index in range(4)], ["train", "test", "train", "train"]) == []


@pytest.mark.parametrize(
    "name",
    ["{}.mid", "{:04d}.mid", "track{}.mid", "song {:02d}.mid", "Track_{}.mid", "Piece-{} (1).mid", "{} take 1.mid"],
)
def test_numbers_in_each_split_are_no_recordings_of_one_piece(name: str) -> None:
    folders = [folder for folder in ("train", "val", "test") for _ in range(3)]
    names = [f"{folder}/{name.format(index % 3)}" for index, folder in enumerate(folders)]
    assert pieces_apart(names, [{"val": "validation"}.get(folder, folder) for folder in folders]) == []
    assert len(set(map(piece_of, names))) == 9


def test_takes_of_a_number_in_one_folder_are_recordings_of_one_piece() -> None:
    names = [f"all/{number} take {take}.mid" for number in range(3) for take in (1, 2)]
    assert "all/0 take 1.mid (train) and all/0 take 2.mid (test)" in pieces_apart(names, ["train", "test"] * 3)[0]


def test_folders_in_several_splits_are_told() -> None:
    names = ["etude/shi.mid", "etude/lee.mid", "fugue/shi.mid"]
    assert pieces_apart(names, ["train", "test", "train"]) == [
        "files of one folder are in several splits (etude/shi.mid (train) and etude/lee.mid (test)); "
        "if a folder holds one piece, --split-by folder keeps it together"
    ]


def test_small_splits_are_told() -> None:
    assert few_documents({"train": 90, "validation": 10, "test": 10}) == []
    assert few_documents({"train": 90, "validation": 9, "test": 1}) == [
        "few documents (validation 9, test 1): scores on fewer than 10 say little about others"
    ]
