from __future__ import annotations

import os

import pytest
from PIL import Image

from mars_core.data.images import content_hash, content_hashes, image_size, load_image, resolve
from mars_core.data.records import BytesImage, PathImage


@pytest.fixture
def folder(tmp_path):
    inside = tmp_path / "images"
    (inside / "sub").mkdir(parents=True)
    Image.new("RGB", (30, 20), (1, 2, 3)).save(inside / "sub" / "a.png")
    Image.new("RGB", (30, 20)).save(tmp_path / "secret.png")
    return inside


def test_paths_inside_the_folder_resolve(folder):
    for name in ("sub/a.png", "./sub/a.png", "sub/../sub/a.png", "sub\\a.png"):
        assert resolve(PathImage(name, folder)) == (folder / "sub" / "a.png").resolve()


@pytest.mark.parametrize("name", ["../secret.png", "sub/../../secret.png", "..\\secret.png", ".."])
def test_paths_that_leave_the_folder_are_refused(folder, name):
    with pytest.raises(ValueError, match=r"leads outside the image folder .*: copy the image into the folder"):
        load_image(PathImage(name, folder))


@pytest.mark.parametrize("name", ["/etc/passwd", "C:\\a.png", "\\\\server\\a.png"])
def test_absolute_paths_are_refused(folder, name):
    with pytest.raises(ValueError, match="is absolute: give image paths relative to the image folder"):
        load_image(PathImage(name, folder))


def test_an_absolute_path_into_the_folder_is_refused_too(folder):
    with pytest.raises(ValueError, match="is absolute"):
        resolve(PathImage(str(folder / "sub" / "a.png"), folder))


def test_links_out_of_the_folder_are_refused_and_links_within_are_not(folder, tmp_path):
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "in.png").symlink_to(folder / "sub" / "a.png")
    with pytest.raises(ValueError, match="leads outside"):
        load_image(PathImage("out.png", folder))
    assert load_image(PathImage("in.png", folder)).size == (30, 20)


def test_the_folder_itself_may_be_a_link(folder, tmp_path):
    (tmp_path / "alias").symlink_to(folder)
    assert load_image(PathImage("sub/a.png", tmp_path / "alias")).size == (30, 20)


def test_missing_images_are_named(folder):
    with pytest.raises(ValueError, match=r"missing image 'b\.png' in the image folder .*: add the file or"):
        load_image(PathImage("b.png", folder))
    with pytest.raises(ValueError, match="missing image 'sub'"):
        load_image(PathImage("sub", folder))


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n then nonsense", b"GIF89a"])
def test_files_that_are_no_images_are_unreadable(folder, content):
    (folder / "bad.png").write_bytes(content)
    for image in (PathImage("bad.png", folder), BytesImage(content, "bad.png")):
        for read in (load_image, image_size):
            with pytest.raises(ValueError, match=r"unreadable image 'bad\.png' \(.+\): replace the file"):
                read(image)


def test_a_loop_of_links_is_unreadable(folder):
    (folder / "a").symlink_to(folder / "b")
    (folder / "b").symlink_to(folder / "a")
    with pytest.raises(ValueError, match=r"image 'a'"):
        load_image(PathImage("a", folder))


@pytest.mark.parametrize("name", ["file:///etc/passwd", "file://localhost/etc/passwd", "http://host/a.png"])
def test_urls_are_no_paths(folder, name):
    with pytest.raises(ValueError, match="missing image"):
        load_image(PathImage(name, folder))


@pytest.mark.parametrize("read", [image_size, load_image])
def test_a_bomb_is_refused_by_its_header_also_where_pils_own_limit_was_taken_off(folder, monkeypatch, read):
    """A few hundred kilobytes of zeros that would be a gigabyte of pixels."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    Image.new("1", (20_000, 10_000)).save(folder / "bomb.png")
    assert (folder / "bomb.png").stat().st_size < 500_000
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    said = r"'bomb\.png' is too large to be read \(20000 x 10000 pixels, expected at most"
    with pytest.raises(ValueError, match=said):
        read(PathImage("bomb.png", folder))


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX here")
def test_a_zero_byte_in_a_path_is_unreadable(folder):
    with pytest.raises(ValueError, match="unreadable image"):
        load_image(PathImage("a\0.png", folder))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    name = "a.tiff" if mode == "CMYK" else "a.png"
    Image.new(mode, (3, 2)).save(tmp_path / name)
    assert load_image(PathImage(name, tmp_path)).mode == "RGB"


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_rotated_photos_stand_upright_in_size_and_pixels(tmp_path, name):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / name, exif=exif)
    image = PathImage(name, tmp_path)
    assert image_size(image) == load_image(image).size == (20, 30)


def test_copies_have_one_hash_wherever_they_lie(folder, tmp_path, sample_of):
    data = (folder / "sub" / "a.png").read_bytes()
    (folder / "copy.png").write_bytes(data)
    images = (PathImage("sub/a.png", folder), PathImage("copy.png", folder), BytesImage(data, "x"))
    other = PathImage("secret.png", tmp_path)
    assert len({content_hash(image) for image in images}) == 1
    hashes = content_hashes([sample_of("q", "a", images=images), sample_of("q", "a", images=(other,))])
    assert len(hashes) == 4
    assert len(set(hashes.values())) == 2
