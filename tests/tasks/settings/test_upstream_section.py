"""The `upstream` section of a study file."""

import pytest
import yaml

from tasks.settings.study import read_study, require_full_paths, write_study


def study(tmp_path, **sections):
    values = {"study": "runs/s", "model": "m", "data": {"train": "train.json"}} | sections
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
    return read_study(tmp_path / "study.yaml")


READING = {"name": "reading", "data": "before/reading.json", "images": "before/images"}


def test_paths_are_relative_to_the_file_and_survive_a_copy(tmp_path):
    config = study(tmp_path, upstream=[READING, {"name": "captions", "data": "c.json", "metric": "cider-d"}])
    first, second = config.upstream
    assert first.data == str(tmp_path / "before" / "reading.json")
    assert first.images == str(tmp_path / "before" / "images")
    assert (first.metric, second.metric, second.samples) == ("accuracy", "cider-d", 500)
    require_full_paths(config)
    write_study(config, tmp_path / "copy.yaml")
    assert read_study(tmp_path / "copy.yaml") == config


def test_without_the_section_nothing_is_asked(tmp_path):
    assert study(tmp_path).upstream == ()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"upstream": [READING, READING]}, "names must differ, got reading, reading"),
        ({"upstream": [READING | {"metric": "bleu"}]}, "accuracy"),
        ({"upstream": [READING | {"name": "a/b"}]}, "upstream.0.name"),
        ({"search": {"max_forgetting": 5}}, "there are none: name what the base model could do before"),
        ({"upstream": [READING], "search": {"forgetting_weight": 1}}, "set calibration.snapshots to true"),
    ],
)
def test_mistakes_are_named(tmp_path, sections, message):
    with pytest.raises(ValueError, match=message):
        study(tmp_path, **sections)
