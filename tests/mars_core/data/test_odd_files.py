"""Files as people really have them: what a picture shows and what a row says is looked at, not that something loads."""

from __future__ import annotations

import csv
import io
import json
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mars_core.data.check import check_samples
from mars_core.data.encode import IGNORE, encode_sample
from mars_core.data.hashing import data_hash
from mars_core.data.image_fingerprints import fingerprint_of
from mars_core.data.images import load_image
from mars_core.data.lengths import TokenCounter
from mars_core.data.readers import detect_format, read_rows, read_samples
from mars_core.data.records import BadRow, BytesImage, PathImage, Sample, Turn
from mars_core.evaluation.generation.questions import short_questions


def stored(picture: Image.Image, kind: str = "PNG", **options) -> BytesImage:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return BytesImage(buffer.getvalue(), f"a.{kind.lower()}")


def levels(image: BytesImage) -> list[int]:
    """The red channel of the first row; the picture must be grey."""
    pixels = np.asarray(load_image(image))
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].tolist()


RAMP = np.linspace(0, 1, 314)[None, :].repeat(2, axis=0)


@pytest.mark.parametrize(
    ("deep", "kind"),
    [
        ((RAMP * 4095).astype(np.uint16), "PNG"),  # an X-ray of 12 bits
        ((RAMP * 4095).astype(np.uint16), "TIFF"),
        ((RAMP * 65535).astype(np.uint16), "PNG"),
        ((RAMP * 70000 - 1000).astype(np.int32), "TIFF"),  # Hounsfield units and the like, below 0 too
        (RAMP.astype(np.float32), "TIFF"),
        ((RAMP * 812.5 - 3).astype(np.float32), "TIFF"),
    ],
    ids=["12-bit-png", "12-bit-tiff", "16-bit", "32-bit", "shares", "metres"],
)
def test_a_deep_grey_ramp_keeps_its_levels(deep, kind):
    found = levels(stored(Image.fromarray(deep), kind))
    assert np.abs(np.array(found) - RAMP[0] * 255).max() <= 1
    assert len(set(found)) >= 255


def test_deep_pictures_of_ordinary_levels_stay_as_they_are():
    grey = np.array([[0, 3, 100, 200]])
    assert levels(stored(Image.fromarray(grey.astype(np.uint16)))) == [0, 3, 100, 200]
    assert levels(stored(Image.fromarray(grey.astype(np.int32)), "TIFF")) == [0, 3, 100, 200]
    half = np.full((1, 2), 0.5, np.float32)
    assert levels(stored(Image.fromarray(half), "TIFF")) == [128, 128]


def test_pixels_that_are_no_numbers_are_black_and_a_picture_of_them_is_refused():
    depth = np.array([[np.nan, 2.0, 3.0, np.inf]], np.float32)
    assert levels(stored(Image.fromarray(depth), "TIFF")) == [0, 0, 255, 255]
    with pytest.raises(ValueError, match=r"unreadable image 'a\.tiff' \(no pixel of it is a finite number\)"):
        load_image(stored(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"))


def shape(mode: str) -> Image.Image:
    """A black square on nothing: only its transparency tells it from a black picture."""
    layer = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    layer.paste((0, 0, 0, 255), (2, 2, 6, 6))
    return layer if mode == "RGBA" else layer.convert(mode)


def palette_shape() -> Image.Image:
    picture = Image.new("P", (8, 8), 0)
    picture.putpalette([0, 0, 0, 0, 0, 0])
    picture.paste(1, (2, 2, 6, 6))
    return picture


@pytest.mark.parametrize(
    "image",
    [
        stored(shape("RGBA")),
        stored(shape("LA")),
        stored(shape("RGBA"), "WEBP", lossless=True),
        stored(palette_shape(), transparency=0),
        stored(palette_shape(), "GIF", transparency=0),
    ],
    ids=["RGBA", "LA", "WebP", "tRNS", "GIF"],
)
def test_transparent_pixels_go_over_white(image):
    pixels = np.asarray(load_image(image))
    assert pixels[4, 4].tolist() == [0, 0, 0]
    assert pixels[0, 0].tolist() == [255, 255, 255]


def test_half_transparent_pixels_are_mixed_with_white():
    pixels = np.asarray(load_image(stored(Image.new("RGBA", (2, 2), (200, 0, 0, 51)))))
    assert pixels[0, 0].tolist() == pytest.approx([244, 204, 204], abs=1)  # 0.2 of the colour, 0.8 of white


def test_a_colour_picture_with_a_transparent_colour_shows_white_there():
    picture = Image.new("RGB", (4, 1), (9, 9, 9))
    picture.putpixel((0, 0), (1, 2, 3))
    assert np.asarray(load_image(stored(picture, transparency=(1, 2, 3))))[0].tolist() == [[255] * 3, *[[9] * 3] * 3]


def test_cmyk_keeps_its_colours_and_exif_turns_the_pixels():
    cyan = np.asarray(load_image(stored(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=95)))[8, 8]
    assert cyan[0] < 60
    assert min(cyan[1:]) > 120
    picture = Image.new("RGB", (2, 1), "red")
    picture.putpixel((1, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: left becomes top
    assert np.asarray(load_image(stored(picture, exif=exif))).tolist() == [[[255, 0, 0]], [[0, 0, 255]]]


def test_of_an_animation_the_first_frame_is_used_and_said(sample_of):
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "green", "blue")]
    image = stored(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(load_image(image))[0, 0].tolist() == [255, 0, 0]
    assert fingerprint_of(image).frames == 3
    report = check_samples([sample_of("<image>?", "Red.", images=(image,), row=7)])
    assert report.notes == (
        "1 image has more than one frame or page, such as 'a.gif' with 3 (d.json, row 7): only the first is used",
    )


def test_a_picture_that_is_too_large_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"image 'a\.png' is too large to be read \(.*\): make it smaller"):
        load_image(stored(Image.new("L", (20, 20))))


def test_a_picture_of_a_shape_that_the_processor_refuses_is_a_bad_row(qwen, sample_of, tmp_path):
    Image.new("RGB", (3000, 10)).save(tmp_path / "wide.png")
    good, bad = sample_of("Hello?", "Yes."), sample_of("<image>?", "A line.", images=(PathImage("wide.png", tmp_path),))
    report = check_samples([good, bad], measure=TokenCounter(qwen).measure)
    (problem,) = report.problems
    assert "refuses the row: absolute aspect ratio must be smaller than 200, got 300.0" in problem.reason
    assert "(its images have 3000 x 10 pixels: crop, pad or shrink one that it cannot take)" in problem.reason


CONTROL = [("llava", "<video>"), ("qwen", "<|image_pad|>"), ("qwen", "<|video_pad|>")]


@pytest.mark.parametrize(("name", "token"), CONTROL)
@pytest.mark.parametrize("pictures", [0, 1])
def test_a_placeholder_in_the_text_is_found_in_every_row(request, sample_of, make_image, name, token, pictures):
    """A good row of the same image sizes stands in front: only the first of each size was looked at once."""
    processor = request.getfixturevalue(name)
    images, marker = tuple(make_image() for _ in range(pictures)), "<image>\n" * pictures
    good = sample_of(f"{marker}What is it?", "A dog.", images=images)
    bad = sample_of(f"{marker}What does {token} mean?", "A dog.", images=images, row=2)
    report = check_samples([good, bad], measure=TokenCounter(processor).measure)
    (problem,) = report.problems
    assert problem.source.row == 2
    assert f"the text has {token!r}, a control token of the model, and the model's processor refuses" in problem.reason
    assert problem.reason.endswith("write it in another way, such as with spaces, or remove the row")
    with pytest.raises(ValueError, match=r"d\.json, row 2"):  # what a calibration asks first, whatever its subset is
        TokenCounter(processor)(bad)


def test_a_control_token_that_the_processor_takes_is_noted(qwen, sample_of):
    samples = [sample_of("Hello?", "Yes."), sample_of("What is <|im_end|>?", "An end.", name="t", row=2)]
    report = check_samples(samples, measure=TokenCounter(qwen).measure)
    assert not report.problems
    assert report.notes[0].startswith(
        "1 row has a control token of the model in the text, such as '<|im_end|>' (d.json"
    )


def test_labels_that_would_be_inexact_are_found_by_counting(llava_with, sample_of):
    """As encoding finds them, but before a run: the prompt ends with a space that the answer's first token takes in."""
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'][0]['text'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    processor, sample = llava_with(template), sample_of("What is the colour?", "It is green.")
    with pytest.raises(ValueError, match="change with what follows") as found:
        encode_sample(sample, processor)
    with pytest.raises(ValueError, match="change with what follows") as counted:
        TokenCounter(processor)(sample)
    assert str(counted.value) == str(found.value)


def lines(tmp_path, *records: dict, name: str = "data.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def talk(question: str = "What is it?", **answer) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": "A dog.", **answer}]


def test_half_a_character_is_a_bad_row_with_its_line(tmp_path):
    path = tmp_path / "data.jsonl"
    cut = json.dumps({"messages": talk("A smile \ud83d and more")})
    path.write_text(json.dumps({"messages": talk("\U0001f600")}) + "\n" + cut + "\n")
    good, bad = read_rows(path)
    assert isinstance(good, Sample)
    assert isinstance(bad, BadRow)
    assert str(bad).startswith(
        f"{path}, row 2 (line 2): half a character (lone surrogate) in 'A smile \\ud83d and more'"
    )
    llava = lines(tmp_path, {"conversations": [{"from": "human", "value": "\udc00"}]}, name="llava.jsonl")
    assert all(isinstance(row, BadRow) for row in read_rows(llava))


@pytest.mark.parametrize("key", ["video", "videos"])
def test_rows_with_other_media_are_not_read_as_text(tmp_path, key):
    rows = [{"messages": talk(), key: ["a.mp4"]}, {"messages": talk(), key: []}, {"messages": talk()}]
    path = lines(tmp_path, *rows)
    bad, *good = read_rows(path)
    assert f"the row has `{key}`, and MARS trains on images, sounds of JSON files and text" in str(bad)
    assert all(isinstance(row, Sample) for row in good)
    table = tmp_path / "data.parquet"
    pq.write_table(
        pa.Table.from_pylist([{"question": "q", "answer": "a", key: name} for name in ("a.mp4", None)]), table
    )
    bad, good = read_rows(table)
    assert isinstance(bad, BadRow)
    assert isinstance(good, Sample)


@pytest.mark.parametrize(("written", "asked"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_in_file_names_are_found_however_they_are_written(tmp_path, written, asked):
    Image.new("RGB", (3, 2), "red").save(tmp_path / unicodedata.normalize(written, "Bücher café.png"))
    image = PathImage(unicodedata.normalize(asked, "Bücher café.png"), tmp_path)
    assert np.asarray(load_image(image))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("untrained", [{"weight": 0}, {"weight": 0.0}, {"loss": False}])
def test_an_answer_of_weight_0_is_read_and_not_trained_on(tmp_path, qwen, untrained):
    first = talk("What is the colour?", **untrained)
    path = lines(tmp_path, {"messages": [*first, *talk("How many dogs are there?", weight=1)]})
    (sample,) = read_samples(path)
    encoded = encode_sample(sample, qwen)
    trained = qwen.tokenizer.decode([label for label in encoded.labels.tolist() if label != IGNORE])
    assert trained == "A dog.<|im_end|>"
    assert qwen.tokenizer.decode(encoded.input_ids).count("A dog.<|im_end|>") == 2
    assert sample.answers == ("A dog.",)
    (question,) = short_questions([sample], qwen, 100).questions
    assert question.text == "How many dogs are there?"
    assert question.prompt_tokens == encoded.answer_spans[0][0]


def test_the_weight_of_an_answer_counts_in_the_datas_hash_and_nothing_else_changed_it(tmp_path):
    plain, one, none = (
        read_samples(lines(tmp_path, {"messages": [*talk(**weight), *talk()]}, name=f"{number}.jsonl"))
        for number, weight in enumerate([{}, {"weight": 1}, {"weight": 0}])
    )
    assert data_hash(plain) == data_hash(one) != data_hash(none)
    assert next(iter(plain[0].turns)) == Turn("user", "What is it?")


def test_weights_that_leave_nothing_to_train_on_or_are_no_weights_are_bad(tmp_path):
    path = lines(tmp_path, {"messages": talk(weight=0)}, {"messages": talk(weight=0.5)})
    report = check_samples(read_rows(path))
    assert [problem.reason.partition(":")[0] for problem in report.problems] == [
        "no answer is trained on (weight 0 in every one)",
        "`weight` of a message must be 0 or 1, got 0.5",
    ]


def test_an_imagefolder_is_read(tmp_path):
    """As `datasets` documents it: metadata.jsonl or metadata.csv beside the pictures, in folders of splits or not."""
    for split in ("train", "validation"):
        folder = tmp_path / "both" / split
        folder.mkdir(parents=True)
        Image.new("RGB", (4, 3), "red").save(folder / "1.png")
        lines(folder, {"file_name": "1.png", "question": split, "answer": "Red."}, name="metadata.jsonl")
    assert detect_format(tmp_path / "both") == "imagefolder"
    (sample,) = read_samples(tmp_path / "both", split="validation")
    assert list(sample.turns) == [Turn("user", "<image>\nvalidation"), Turn("assistant", "Red.")]
    assert np.asarray(load_image(sample.images[0]))[0, 0].tolist() == [255, 0, 0]
    table = tmp_path / "table"
    table.mkdir()
    Image.new("RGB", (4, 3), "blue").save(table / "1.png")
    with (table / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file_name", "question", "answer"], ["1.png", "Which, then?", "Blue."]])
    (sample,) = read_samples(table)
    assert np.asarray(load_image(sample.images[0]))[0, 0].tolist() == [0, 0, 255]
    assert sample.answers == ("Blue.",)


def test_an_imagefolder_of_captions_is_answered_with_the_remedy(tmp_path):
    lines(tmp_path, {"file_name": "1.png", "text": "A red field."}, name="metadata.jsonl")
    (bad,) = read_rows(tmp_path)
    assert "no question and answer beside the picture, only 'file_name', 'text': add columns" in str(bad)


def test_a_hub_folder_of_subsets_names_them(tmp_path):
    for subset in ("charts", "maps"):
        folder = tmp_path / subset
        folder.mkdir()
        pq.write_table(pa.table({"question": ["q"], "answer": ["a"]}), folder / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"holds 2 datasets \(charts, maps\), .*: name one of them, such as .*charts"):
        read_samples(tmp_path)
    assert len(read_samples(tmp_path / "maps")) == 1
